"""An explorer in JupyterLab: an anywidget whose output also holds the HTML that the built book shows.

The page's script and data come over the widget's own channel, once a page however many explorers it has, so a notebook
with explorers stays small. Four of them can measure: see `measure.py`.
"""
from __future__ import annotations

import anywidget
import traitlets

from ..errors import UserError
from . import static
from .measure import MEASURES, Measurement
from .script import data_script, script, style

LOADER = """
async function load(model) {
  if (globalThis.tpgpt2 && globalThis.tpgpt2.mount) return;
  globalThis.tpgpt2Widget = true;
  globalThis.tpgpt2Loading ||= new Promise((resolve, reject) => {
    model.on("msg:custom", (message) => {
      if (!message.script) return;
      document.head.append(Object.assign(document.createElement("style"), { textContent: message.style }));
      const url = URL.createObjectURL(new Blob([message.script], { type: "text/javascript" }));
      const script = document.createElement("script");
      document.head.append(Object.assign(script, { src: url, onload: resolve, onerror: reject }));
    });
    model.send({ ask: "script" });
  });
  await globalThis.tpgpt2Loading;
}

export default {
  async render({ model, el }) {
    await load(model);
    const element = document.createElement("div");
    element.dataset.explorer = model.get("name");
    element.dataset.initial = JSON.stringify(model.get("initial"));
    el.append(element);
    const live = model.get("measures") ? globalThis.tpgpt2.live(model) : null;
    const made = globalThis.tpgpt2.mount(element, live);
    return () => {
      if (live) live.close();
      if (made && made.close) made.close();
    };
  },
};
"""


class Explorer(anywidget.AnyWidget):
    """One explorer: `name` of `NAMES`, `initial` what it starts with. Raises UserError for an unknown name."""

    _esm = LOADER
    measurement: Measurement | None = None
    name = traitlets.Unicode().tag(sync=True)
    initial = traitlets.Dict().tag(sync=True)
    measures = traitlets.Bool().tag(sync=True)

    def __init__(self, name: str, initial: dict | None = None):
        self.html = static.html(name, initial)
        super().__init__(name=name, initial=initial or {}, measures=name in MEASURES)
        self.on_msg(self._hear)

    def _repr_mimebundle_(self, **kwargs):
        made = super()._repr_mimebundle_(**kwargs)
        data, metadata = made if isinstance(made, tuple) else (made, {})
        return {**(data or {}), "text/html": self.html, "text/plain": f"explorer {self.name}"}, metadata

    def _hear(self, _, content: dict, buffers) -> None:
        """What the browser asks: the script, a measurement, or its end."""
        if content.get("ask") == "script":
            self.send({"script": data_script() + script(), "style": style()})
        elif content.get("ask") == "measure":
            self._stop()
            try:
                self.measurement = Measurement(self.name, content["point"], self.send)
            except UserError as e:
                self.send({"failed": str(e)})
        elif content.get("ask") == "stop":
            self._stop()

    def _stop(self) -> None:
        if self.measurement:
            self.measurement.stop()
            self.measurement = None

    def close(self) -> None:
        self._stop()
        super().close()
