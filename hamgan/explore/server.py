"""The page's server: on this machine, without the network."""

import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hamgan.explore.explorer import Explorer

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self' data: blob:"
)
"""What the browser may load: nothing from elsewhere, whatever the page's library asks for."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class OwnMachineOnly:
    """An ASGI application whose every answer tells the browser POLICY."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def require_gradio() -> None:
    """Refuse with a ValueError, which names the extra, where the page's libraries are missing."""
    # Before its first import: it would ask its makers for the newest version, and tell them of this one.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise ValueError(f"hamgan explore needs Gradio ({error}): pip install 'hamgan[explore]'") from None
    if int(gradio.__version__.split(".")[0]) < 6:
        raise ValueError(f"hamgan explore needs Gradio 6, this is {gradio.__version__}: pip install 'hamgan[explore]'")


def listen(host: str, port: int) -> socket.socket:
    """Take a port.

    Args:
        host: An address of this machine.
        port: 0..65535; 0: any that is free.

    Raises:
        ValueError: If the port is out of range, taken or not allowed, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; it must be in 0..65535, 0 for any that is free")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: {error.strerror or error}; take another, or --port 0 for any that is free"
        ) from None


def serve(explorer: Explorer, taken: socket.socket) -> None:
    """Serve the page on a socket until the process is interrupted; prints its address once it can be opened.

    Args:
        explorer: What draws.
        taken: From `listen`.

    Raises:
        ValueError: If Gradio is missing.
    """
    require_gradio()
    import gradio
    import uvicorn
    from fastapi import FastAPI

    from hamgan.explore.figures import STYLE
    from hamgan.explore.page import STYLE as PAGE_STYLE
    from hamgan.explore.page import THEME, build_page

    host, port = taken.getsockname()[:2]
    app = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        build_page(explorer),
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        ssr_mode=False,
        theme=THEME,
        css=STYLE + PAGE_STYLE,
    )
    config = uvicorn.Config(OwnMachineOnly(app), log_level="warning", timeout_graceful_shutdown=1)
    shown = f"[{host}]" if ":" in host else host
    print(f"{explorer.title}: http://{shown}:{port}/ (Ctrl-C ends it)", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[taken])
    except KeyboardInterrupt:  # the way to end it
        pass
    finally:
        taken.close()
