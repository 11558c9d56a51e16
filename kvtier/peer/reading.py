"""Requests of other nodes, read here instead of by gRPC: of one that is no message its server keeps the call open for as
long as the connection lasts, and some 20 KB for ever."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError


class Reading(grpc.ServerInterceptor):
    """For all methods of a server. Whoever sends what is no message hears INVALID_ARGUMENT."""

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        read = handler.request_deserializer
        name = f"{_kind(handler.request_streaming)}_{_kind(handler.response_streaming)}"
        method = getattr(handler, name)

        def one(message: bytes, context: grpc.ServicerContext) -> Any:
            return method(_read(read, message, context), context)

        def many(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            return method((_read(read, message, context) for message in messages), context)

        return handler._replace(request_deserializer=None, **{name: many if handler.request_streaming else one})


def _kind(is_stream: bool) -> str:
    return "stream" if is_stream else "unary"


def _read(read: Callable[[bytes], Any], message: bytes, context: grpc.ServicerContext) -> Any:
    try:
        return read(message)
    except DecodeError as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise AssertionError("abort raises") from None
