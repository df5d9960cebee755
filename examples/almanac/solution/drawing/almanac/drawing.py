"""The moon as SVG."""

import math

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-52 -52 104 104" width="%d" height="%d" role="img">'
    '<circle r="50" fill="#1b2440"/><path d="%s"%s fill="#f4edd8"/></svg>'
)


def outline(degrees):
    """The lit part as an SVG path, for a waxing moon (0 to 180 degrees from new moon) of radius 50."""
    terminator = abs(math.cos(math.radians(degrees))) * 50
    return "M0,-50 A50,50 0 0 1 0,50 A%.2f,50 0 0 %d 0,-50 Z" % (terminator, degrees > 90)


def moon(degrees, size=240):
    """An SVG element of the moon `degrees` after new moon, `size` pixels wide."""
    if degrees <= 180:
        return SVG % (size, size, outline(degrees), "")
    return SVG % (size, size, outline(360 - degrees), ' transform="scale(-1,1)"')
