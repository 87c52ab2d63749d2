"""Virtual hosts made over the management plugin: a name space per test without a start of rabbitmqctl."""

from urllib.parse import quote, urlsplit, urlunsplit

import httpx


class Management:
    """The HTTP interface of one RabbitMQ; its URL carries user and password."""

    def __init__(self, url: str, seconds: float = 30.0) -> None:
        parts = urlsplit(url)
        self._seconds = seconds
        self._auth = (parts.username or "", parts.password or "")
        self._base = urlunsplit(("http", f"{parts.hostname}:{parts.port}", "/api", "", ""))

    def answers(self) -> bool:
        try:
            return self._call("GET", "/whoami").is_success
        except httpx.HTTPError:
            return False

    def names(self) -> list[str]:
        """The vhosts there are."""
        answer = self._call("GET", "/vhosts").raise_for_status()
        return [each["name"] for each in answer.json()]

    def add(self, vhost: str) -> None:
        """Make the vhost, open to the user of the URL."""
        name = quote(vhost, safe="")
        self._call("PUT", f"/vhosts/{name}").raise_for_status()
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        path = f"/permissions/{name}/{quote(self._auth[0], safe='')}"
        self._call("PUT", path, json=everything).raise_for_status()

    def remove(self, vhost: str) -> None:
        """Remove the vhost with its queues; one that is gone already is no error."""
        answer = self._call("DELETE", f"/vhosts/{quote(vhost, safe='')}")
        if answer.status_code != httpx.codes.NOT_FOUND:
            answer.raise_for_status()

    def let_in(self, user: str, password: str, vhost: str, **permissions: str) -> None:
        """Make a user without a tag, and give it `configure`, `write` and `read` in the vhost."""
        name = quote(user, safe="")
        self._call("PUT", f"/users/{name}", json={"password": password, "tags": ""}).raise_for_status()
        path = f"/permissions/{quote(vhost, safe='')}/{name}"
        self._call("PUT", path, json=permissions).raise_for_status()

    def remove_user(self, user: str) -> None:
        """Remove the user with its permissions."""
        self._call("DELETE", f"/users/{quote(user, safe='')}").raise_for_status()

    def _call(self, method: str, path: str, json: object = None) -> httpx.Response:
        # trust_env off: a proxy of the caller's is not for 127.0.0.1. verify off: it is plain HTTP, and reading
        # the certificates of the world would take most of the time.
        with httpx.Client(auth=self._auth, timeout=self._seconds, trust_env=False, verify=False) as client:
            return client.request(method, self._base + path, json=json)


def with_vhost(amqp_url: str, vhost: str) -> str:
    """The same server, or list of servers, another vhost."""
    path = f"/{quote(vhost, safe='')}"
    return ",".join(urlunsplit(urlsplit(each)._replace(path=path)) for each in amqp_url.split(","))
