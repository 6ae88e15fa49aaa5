"""The command that serves the web page."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from tyro.conf import arg

from e4t.cli.folders import is_domain, kind_of, remember_domain, shipped
from e4t.cli.options import Device, Json, Many, Result, each
from e4t.cli.terminal import device_of, dtype_of, emit, get_console, quiet, require_extra, status
from e4t.errors import ConfigError

if TYPE_CHECKING:
    from e4t.web.studio import Studio

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Web:
    """Serve a page on which pictures are personalized and drawn, for this machine's own browser."""

    domain: Annotated[Many[str], arg(metavar="DOMAIN ...", help_behavior_hint="")] = ()
    """Shipped domains or domain folders. Default: all shipped ones."""
    concepts: Annotated[Path, arg(metavar="DIR")] = Path("concepts")
    """The folder of saved concepts."""
    host: Annotated[str, arg(metavar="NAME")] = "127.0.0.1"
    """The address to listen at; 0.0.0.0 opens the page, saved concepts included, to everybody on the network."""
    port: Annotated[int, arg(metavar="N")] = 7860
    """The port to listen at."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number type of the models' weights; float16 takes half the memory, for GPUs."""
    json: Json = False

    def run(self) -> Result:
        require_extra("web", "gradio")
        domains = self._domains()
        if not 0 < self.port < 65536:
            raise ConfigError(f"port is {self.port}; it must be between 1 and 65535")
        require_free(self.host, self.port)  # before minutes are spent on loading

        from e4t.pipeline import E4TPipeline
        from e4t.web.shelf import Shelf
        from e4t.web.studio import Studio

        shelf = Shelf(self.concepts, remember_domain)
        shelf.require_place()
        quiet()
        device, dtype = device_of(self.device), dtype_of(self.dtype)
        with ended_by_signals():
            studio = Studio(domains, shelf, lambda name: E4TPipeline.from_pretrained(name, device=device, dtype=dtype))
            try:
                with status("loading the model"):
                    studio.pipe(domains[0])
                self._serve(studio)
            finally:
                studio.close()
        return Result([])

    def _serve(self, studio: Studio) -> None:
        """Until it is ended."""
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(studio.uploads)  # read by gradio when it is imported
        from e4t.web.page import launch

        console = get_console()
        if self.host not in _LOOPBACK:
            console.print("anyone who reaches this address can use the page and its saved concepts", style="yellow")
        page = launch(studio, host=self.host, port=self.port)
        address = f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        console.print(f"the page is at {address}: open it in a browser  (Ctrl-C ends)")
        emit("ready", url=address)
        with redirect_stdout(sys.stderr):
            page.block_thread()

    def _domains(self) -> tuple[str, ...]:
        domains = each(self.domain) or tuple(name for name, folder in shipped().items() if kind_of(folder) == "domain")
        for name in domains:
            if not is_domain(name):
                raise ConfigError(f"'{name}' is neither a shipped domain nor a domain folder")
        return domains


def require_free(host: str, port: int) -> None:
    """Raise ConfigError where no page can be served at an address."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            if os.name == "posix":  # a port whose last user has just ended counts as free, as it does for servers
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is in use; choose another with --port") from error
        why = error.strerror or error
        raise ConfigError(f"nothing can be served at {host}:{port} ({why}); choose another --host or --port") from error


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While it lasts, SIGTERM and SIGHUP end the work as Ctrl-C does, so that what is temporary is removed.

    The first of them does; further ones do not disturb the end. What is ignored, as under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are no business of another thread
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    found = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}

    def end(*_: Any) -> NoReturn:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        for number in before:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
