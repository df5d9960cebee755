"""How the report's page looks: light and dark, at a desk and on a phone."""

STYLE = """
:root{--page:#fff;--ink:#1f2328;--soft:#57606a;--line:#d0d7de;--box:#f6f8fa;--link:#0969da;
--good:#1a7f37;--good-box:#dafbe1;--bad:#cf222e;--bad-box:#ffebe9;--warn:#7d5200;--warn-box:#fff3c7;
--open:#0969da;--open-box:#ddf4ff;--quiet:#57606a;--quiet-box:#eaeef2;
--bar-good:#2da44e;--bar-bad:#cf222e;--bar-warn:#d4a72c;--bar-open:#54aeff;--bar-quiet:#8c959f}
@media(prefers-color-scheme:dark){:root{--page:#0d1117;--ink:#e6edf3;--soft:#9198a1;--line:#30363d;--box:#161b22;
--link:#4493f8;--good:#3fb950;--good-box:#12261e;--bad:#ff7b72;--bad-box:#2d1517;--warn:#e3b341;--warn-box:#2b2111;
--open:#79c0ff;--open-box:#0f2336;--quiet:#9198a1;--quiet-box:#21262d;
--bar-good:#2ea043;--bar-bad:#da3633;--bar-warn:#bb8009;--bar-open:#388bfd;--bar-quiet:#6e7681}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main,footer{max-width:1180px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:26px;line-height:1.25;margin:0 0 8px;overflow-wrap:anywhere}
h2{font-size:18px;margin:36px 0 10px;padding-bottom:6px;border-bottom:1px solid var(--line)}
p{margin:8px 0}
a{color:var(--link)}
footer{margin-top:40px;padding-bottom:32px;color:var(--soft);font-size:13px}
.eyebrow{color:var(--soft);margin:0;font-size:13px}
.sentence{font-size:17px;overflow-wrap:anywhere}
.small{display:block;color:var(--soft);font-size:13px}
.notice{padding:8px 12px;border-radius:6px;overflow-wrap:anywhere}
.badge{display:inline-block;padding:0 8px;border-radius:10px;font-size:13px;line-height:20px;font-weight:600;white-space:nowrap}
h1 .badge{font-size:16px;line-height:26px;border-radius:13px;padding:0 12px;vertical-align:3px}
.badge.good{color:var(--good);background:var(--good-box)}
.badge.bad,.notice.bad{color:var(--bad);background:var(--bad-box)}
.badge.warn,.notice.warn{color:var(--warn);background:var(--warn-box)}
.badge.open{color:var(--open);background:var(--open-box)}
.badge.quiet{color:var(--quiet);background:var(--quiet-box)}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:10px;margin:20px 0 0}
.tiles>div{border:1px solid var(--line);border-radius:8px;padding:10px 14px;min-width:0}
.tiles dt{color:var(--soft);font-size:13px}
.tiles dd{margin:0;font-size:20px;font-weight:600;overflow-wrap:anywhere}
.tiles dd+dd{font-size:13px;font-weight:400;color:var(--soft)}
.timeline{display:block;font:11px system-ui,sans-serif}
.timeline text{fill:var(--soft)}.timeline .label{fill:#fff;font-size:10px}
.timeline .grid{stroke:var(--line)}.timeline .cut{stroke:var(--soft);stroke-dasharray:2 3}
.timeline .good{fill:var(--bar-good)}.timeline .bad{fill:var(--bar-bad)}.timeline .warn{fill:var(--bar-warn)}
.timeline .open{fill:var(--bar-open)}.timeline .quiet{fill:var(--bar-quiet)}
.timeline line.good{stroke:var(--bar-good)}.timeline line.bad{stroke:var(--bar-bad);stroke-width:2}
.timeline line.warn{stroke:var(--bar-warn);stroke-width:2}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;margin:10px 0 0;color:var(--soft);font-size:13px}
.dot{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
.dot.good{background:var(--bar-good)}.dot.bad{background:var(--bar-bad)}.dot.warn{background:var(--bar-warn)}
.dot.open{background:var(--bar-open)}.dot.quiet{background:var(--bar-quiet)}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;vertical-align:top;padding:6px 10px 6px 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
thead th{color:var(--soft);font-weight:500;font-size:13px;overflow-wrap:normal}
tr.group th{padding-top:16px;font-size:13px;color:var(--soft)}
td:first-child{white-space:nowrap}
code.oid{white-space:nowrap}
code,pre{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{background:var(--box);border-radius:4px;padding:1px 4px;overflow-wrap:anywhere}
pre{background:var(--box);border-radius:6px;padding:8px 12px;margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere;max-height:420px;overflow-y:auto}
details>summary{cursor:pointer}
header details{margin-top:10px}
dl.facts{display:grid;grid-template-columns:minmax(90px,max-content) 1fr;gap:4px 16px;margin:8px 0}
dl.facts dt{color:var(--soft)}dl.facts dd{margin:0;min-width:0;overflow-wrap:anywhere}
dl.commands dt{color:var(--soft);margin-top:8px}dl.commands dd{margin:0}
td details[open]{min-width:280px}
@media(max-width:700px){main,footer{padding:0 14px}h1{font-size:22px}
.tiles{grid-template-columns:1fr 1fr}.tiles dd{font-size:17px}
.timeline .label{display:none}
table,thead,tbody,tr,td,tr.group th{display:block}thead{display:none}
tr{border:1px solid var(--line);border-radius:8px;padding:6px 12px;margin:8px 0}
tr.group{border:0;padding:0;margin:14px 0 0}tr.group th{border:0;padding:0}
td{display:grid;grid-template-columns:92px 1fr;gap:10px;border:0;padding:3px 0}
td.none{display:none}td::before{content:attr(data-label);color:var(--soft);font-size:13px}td>div{min-width:0}
td details[open]{min-width:0}dl.facts{grid-template-columns:1fr;gap:0}dl.facts dd{margin-bottom:8px}}
"""
