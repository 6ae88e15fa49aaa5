"""The command that serves the web page."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from e4t.cli.folders import is_domain, kind_of, remember_domain, shipped
from e4t.cli.options import Device, Dtype, Json, Many, Result, each
from e4t.cli.terminal import device_of, dtype_of, emit, get_console, quiet, require_extra, status
from e4t.errors import ConfigError

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
    dtype: Dtype = "float32"
    """Number type of the models' weights; float16 is for drawing alone."""
    json: Json = False

    def run(self) -> Result:
        require_extra("web", "gradio")
        domains = self._domains()
        if not 0 < self.port < 65536:
            raise ConfigError(f"port is {self.port}; it must be between 1 and 65535")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

        from e4t.pipeline import E4TPipeline
        from e4t.web.page import launch
        from e4t.web.shelf import Shelf
        from e4t.web.studio import Studio

        quiet()
        device, dtype = device_of(self.device), dtype_of(self.dtype)
        shelf = Shelf(self.concepts, remember_domain)
        studio = Studio(domains, shelf, lambda name: E4TPipeline.from_pretrained(name, device=device, dtype=dtype))
        with status("loading the model"):
            studio.pipe(domains[0])
        console = get_console()
        if self.host not in _LOOPBACK:
            console.print("anyone who reaches this address can use the page and its saved concepts", style="yellow")
        try:
            page = launch(studio, host=self.host, port=self.port)
            console.print(f"http://{self.host}:{self.port}  (Ctrl-C ends)")
            emit("ready", url=f"http://{self.host}:{self.port}")
            with redirect_stdout(sys.stderr):
                page.block_thread()
        finally:
            studio.close()
        return Result([])

    def _domains(self) -> tuple[str, ...]:
        domains = each(self.domain) or tuple(name for name, folder in shipped().items() if kind_of(folder) == "domain")
        for name in domains:
            if not is_domain(name):
                raise ConfigError(f"'{name}' is neither a shipped domain nor a domain folder")
        return domains
