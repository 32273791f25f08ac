"""Host, origin and token of requests."""

import pytest
from served_models import make_client, make_fields, make_png_bytes, make_served_model

from fastcxr.errors import RecipeError
from fastcxr.serve.options import MIN_TOKEN_CHARACTERS, ServeOptions, choose_token

TOKEN = "correct-horse-battery"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}
FILES = make_fields(("a.png", make_png_bytes()))


@pytest.mark.parametrize(
    ("host", "options", "status"),
    [
        ("localhost:8000", {}, 200),
        ("LOCALHOST", {}, 200),
        ("127.0.0.1:9000", {}, 200),  # a forwarded port
        ("[::1]:8000", {}, 200),
        ("evil.example:8000", {}, 400),
        ("192.168.1.5:8000", {}, 400),
        ("localhost.evil.example", {}, 400),
        ("localhost:8000@evil.example", {}, 400),
        ("localhost:port", {}, 400),
        ("localhost/evil", {}, 400),
        ("", {}, 400),
        ("hub.example.org", {"allowed_hosts": ("Hub.example.org",)}, 200),
        ("evil.example", {"allowed_hosts": ("hub.example.org",)}, 400),
        ("192.168.1.5:8000", {"host": "0.0.0.0"}, 200),
        ("192.168.1.5:8000", {"host": "192.168.1.5"}, 200),
        ("evil.example", {"host": "0.0.0.0"}, 400),
        ("reader:8000", {"host": "0.0.0.0", "own_names": ("Reader",)}, 200),
        ("reader:8000", {"host": "0.0.0.0"}, 400),
    ],
)
def test_a_request_must_name_a_host_of_the_server(host, options, status):
    client = make_client(**options, token=TOKEN if options else "")
    answer = client.get("/healthz", headers={"Host": host} | AUTHORIZATION)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["code"] == "E501" and "x-content-type-options" in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://hub.example.org"}, 200),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:8000.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "file://127.0.0.1:8000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_a_request_of_another_site_is_rejected(headers, status):
    client = make_client(allowed_hosts=("hub.example.org",), token=TOKEN)
    answer = client.post("/predict", files=FILES, headers=headers | AUTHORIZATION)
    assert answer.status_code == status
    assert status == 200 or answer.json()["code"] == "E501"


def test_a_rejected_request_is_not_computed():
    model = make_served_model()
    client = make_client(model, token=TOKEN)
    assert client.post("/predict", files=FILES).status_code == 403
    assert model.scorer.n_calls == 0
    assert client.post("/predict", files=FILES, headers=AUTHORIZATION).status_code == 200
    assert model.scorer.n_calls == 1


@pytest.mark.parametrize("path", ["/", "/healthz", "/model.json", "/page/app.js"])
@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 403),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 403),
        (f"Basic {TOKEN}", 403),
        ("Bearer", 403),
        ("Bearer é", 403),
    ],
)
def test_each_page_requires_the_token(path, authorization, status):
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    answer = make_client(token=TOKEN).get(path, headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "E502" and TOKEN not in answer.text


def test_the_token_of_the_url_becomes_a_strict_cookie_and_leaves_the_url():
    client = make_client(token=TOKEN)
    answer = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "./"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Domain" not in cookie
    assert client.get("/").status_code == 200
    assert client.post("/predict", files=FILES).status_code == 200


def test_the_cookie_is_secure_behind_https_and_belongs_to_the_port():
    client = make_client(token=TOKEN, port=9001)
    headers = {"X-Forwarded-Proto": "https"}
    cookie = client.get(f"/?token={TOKEN}", headers=headers, follow_redirects=False).headers["set-cookie"]
    assert "Secure" in cookie and cookie.startswith("fastcxr_token_9001=")


@pytest.mark.parametrize("path", ["/?token=wrong", "/?token=", f"/model.json?token={TOKEN}", "/?token=%ff%00"])
def test_a_wrong_token_or_one_on_another_page_sets_no_cookie(path):
    answer = make_client(token=TOKEN).get(path, follow_redirects=False)
    assert answer.status_code == 403 and "set-cookie" not in answer.headers


@pytest.mark.parametrize("cookie", ["fastcxr_token_8000=wrong", "fastcxr_token_8000", "=;=", "fastcxr_token_8000=\xff"])
def test_a_wrong_cookie_is_rejected(cookie):
    answer = make_client(token=TOKEN).get("/", headers={"Cookie": cookie.encode("latin-1")})
    assert answer.status_code == 403


def test_a_token_is_chosen_if_other_computers_can_reach_the_server():
    assert choose_token("127.0.0.1", ()) == "" and choose_token("::1", ()) == "" and choose_token("localhost", ()) == ""
    assert choose_token("127.0.0.1", (), "given") == "given"
    tokens = {choose_token("0.0.0.0", ()), choose_token("0.0.0.0", ()), choose_token("127.0.0.1", ("hub.org",))}
    assert len(tokens) == 3 and all(len(token) > 2 * MIN_TOKEN_CHARACTERS for token in tokens)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"token": "short"}, "the token has 5 characters, expected at least 16"),
        ({"token": "a token with spaces in it"}, "without spaces"),
        ({"port": 70000}, "`port=70000`, expected a number from 0 to 65535"),
        ({"max_waiting": -1}, "`max_waiting=-1`, expected 0 or more"),
        ({"allowed_hosts": ("https://hub.org",)}, "'https://hub.org' is not a host name"),
        ({"allowed_hosts": ("*.hub.org",)}, "is not a host name"),
        ({"host": "0.0.0.0", "token": ""}, "requires a token"),
    ],
)
def test_invalid_options_are_rejected_with_a_fix(values, text):
    with pytest.raises(RecipeError, match=text.replace("*", r"\*").replace("(", r"\(")):
        ServeOptions(**values)
