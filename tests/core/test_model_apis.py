"""What of a request stays inside the gateway: whatever would make an endpoint act on its own."""

from typing import Any

import pytest

from longshot_dagster.core.model_apis import Api, acting_elsewhere, api_of_path

PICTURE = "data:image/png;base64,AAAA"


@pytest.mark.parametrize("api", Api)
def test_a_path_names_its_language(api: Api) -> None:
    assert api_of_path(api.path) is api
    assert api_of_path(f"{api.path}/batches") is None


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (Api.CHAT, {"tools": [{"type": "function", "function": {"name": "web_search"}}], "messages": []}),
        (Api.CHAT, {"messages": [{"content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}]}),
        (Api.CHAT, {"messages": [{"content": "see https://example.org"}], "web_search_options": None}),
        (
            Api.RESPONSES,
            {"tools": [{"type": "custom", "name": "apply_patch"}, {"type": "local_shell"}], "store": False},
        ),
        (Api.RESPONSES, {"tools": [{"type": "namespace", "tools": [{"type": "function", "name": "f"}]}]}),
        (Api.RESPONSES, {"input": [{"type": "input_image", "image_url": PICTURE}], "background": False}),
        (Api.MESSAGES, {"tools": [{"name": "Bash", "input_schema": {}}, {"type": "bash_20250124", "name": "bash"}]}),
        (Api.MESSAGES, {"messages": [{"content": [{"type": "image", "source": {"type": "base64", "data": "A"}}]}]}),
        (
            Api.MESSAGES,
            {
                "messages": [
                    {
                        "content": [
                            {"type": "tool_use", "input": {"content": {"type": "image", "source": {"type": "url"}}}}
                        ]
                    }
                ]
            },
        ),
        (Api.CHAT, {"messages": None, "tools": "x", "input": [[[]]]}),
    ],
)
def test_what_an_agents_own_program_does_is_passed_on(api: Api, body: dict[str, Any]) -> None:
    assert acting_elsewhere(api, body) == ""


@pytest.mark.parametrize(
    ("api", "body", "told"),
    [
        (Api.CHAT, {"web_search_options": {"search_context_size": "low"}}, "`web_search_options`"),
        (Api.CHAT, {"tools": [{"type": "browser"}]}, "the tool type 'browser'"),
        (Api.CHAT, {"tools": [None, {"type": ["function"]}]}, "the tool type"),
        (
            Api.CHAT,
            {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "https://x/?secret"}}]}]},
            "address",
        ),
        (Api.CHAT, {"messages": [{"content": [{"type": "file", "file": {"file_id": "f-1"}}]}]}, "address"),
        (Api.RESPONSES, {"previous_response_id": "resp_1"}, "`previous_response_id`"),
        (Api.RESPONSES, {"tools": [{"type": "namespace", "tools": [{"type": "mcp"}]}]}, "'mcp'"),
        (Api.RESPONSES, {"input": [{"content": [{"type": "input_image", "image_url": "https://x/"}]}]}, "address"),
        (
            Api.RESPONSES,
            {"input": [{"type": "function_call_output", "output": [{"type": "input_file", "file_url": "h"}]}]},
            "a",
        ),
        (Api.RESPONSES, {"input": [{"type": "item_reference", "id": "msg_1"}]}, "address"),
        (Api.MESSAGES, {"container": "c-1"}, "`container`"),
        (Api.MESSAGES, {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}, "'web_fetch_20250910'"),
        (Api.MESSAGES, {"messages": [{"content": [{"type": "document", "source": {"type": "url", "url": "h"}}]}]}, "a"),
        (
            Api.MESSAGES,
            {
                "messages": [
                    {"content": [{"type": "tool_result", "content": [{"type": "image", "source": {"type": "url"}}]}]}
                ]
            },
            "address",
        ),
    ],
)
def test_what_an_endpoint_would_do_itself_is_not(api: Api, body: dict[str, Any], told: str) -> None:
    assert told in acting_elsewhere(api, body)


def test_a_deep_request_is_looked_through_to_its_end() -> None:
    deep: Any = [{"type": "image", "source": {"type": "url"}}]
    for _ in range(50_000):
        deep = [{"content": deep}]
    assert acting_elsewhere(Api.MESSAGES, {"messages": deep}) != ""
