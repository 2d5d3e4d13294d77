import pytest

from feedback.store_url import parse_store_url


@pytest.mark.parametrize(
    "url", ["redis://localhost", "redis://u:p@h:6380/2", "rediss://h?ssl_ca_certs=/ca", "unix:///a/b"]
)
def test_a_single_server_is_what_its_client_takes(url: str) -> None:
    address = parse_store_url(url)
    assert (address.kind, address.url) == ("single", url)
    assert address.tls is url.startswith("rediss")


def test_a_cluster_is_known_by_any_of_its_nodes() -> None:
    address = parse_store_url("rediss+cluster://me:p%40ss@a:7000,b,[::1]:7002?ssl_ca_certs=/ca.pem")
    assert address.kind == "cluster"
    assert address.hosts == (("a", 7000), ("b", 6379), ("::1", 7002))
    assert (address.tls, address.username, address.password) == (True, "me", "p@ss")
    assert address.files == (("ssl_ca_certs", "/ca.pem"),)


def test_sentinels_know_a_primary_by_name() -> None:
    address = parse_store_url("redis+sentinel://:secret@a,b:26380/mymaster/3")
    assert (address.hosts, address.service, address.db) == ((("a", 26379), ("b", 26380)), "mymaster", 3)
    assert (address.username, address.password) == (None, "secret")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "should be a Redis URL"),
        ("http://localhost:6379", "should be a Redis URL"),
        ("redis://", "should be a Redis URL"),
        ("redis://h:0", "should be a Redis URL"),
        ("redis://h:99999", "should be a Redis URL"),
        ("unix://", "should be a Redis URL"),
        ("redis://h\n", "should be a Redis URL"),
        ("redis+cluster://a,,b", "should be a Redis URL"),
        ("redis+cluster://a:x", "should be a Redis URL"),
        ("redis+cluster://a/5", "should name no database"),
        ("redis+sentinel://a:26379", "the name that the Sentinels know"),
        ("redis+sentinel://a/name/x", "the name that the Sentinels know"),
        ("redis+cluster://a?socket_timeout=9", "no option 'socket_timeout'"),
    ],
)
def test_what_is_wrong_is_said_and_what_would_be_right(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_store_url(url)


@pytest.mark.parametrize(
    "url", ["redis+cluster://u:hunter2@a:x", "http://u:hunter2@h", "redis+sentinel://u:hunter2@a"]
)
def test_no_message_and_no_repr_holds_a_password(url: str) -> None:
    with pytest.raises(ValueError, match="should") as caught:
        parse_store_url(url)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(parse_store_url("redis+cluster://u:hunter2@a"))
