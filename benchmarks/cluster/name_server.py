"""A name server on loopback, as the cluster's: it says which replicas there are now."""

from __future__ import annotations

from collections.abc import Iterable

from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer


class NameServer(BaseResolver):  # type: ignore[misc]
    """Answers for one name, with or without a search domain behind it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._addresses: tuple[str, ...] = ()
        self._server = DNSServer(
            self, address="127.0.0.1", port=0, logger=DNSLogger("-request,-reply")
        )
        self._server.start_thread()

    @property
    def port(self) -> int:
        port: int = self._server.server.server_address[1]
        return port

    def say(self, addresses: Iterable[str]) -> None:
        self._addresses = tuple(addresses)

    def resolve(self, request: DNSRecord, _handler: DNSHandler) -> DNSRecord:
        reply = request.reply()
        question = request.q
        if str(question.qname).split(".")[0] != self._name:
            reply.header.rcode = RCODE.NXDOMAIN
        elif question.qtype == QTYPE.A:
            for address in self._addresses:
                reply.add_answer(RR(question.qname, QTYPE.A, ttl=1, rdata=A(address)))
        return reply

    def close(self) -> None:
        self._server.stop()
        self._server.server.server_close()
