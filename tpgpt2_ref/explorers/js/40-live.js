// In JupyterLab: one button more, which measures the chosen point on the reader's own ranks.
tpgpt2.live = function (model) {
  const { h } = tpgpt2;
  let hear = null;

  // point(state) is what is measured, or null; receive(state, found) puts the result into the state
  function attach(
    panel,
    point,
    receive = (state, found) => {
      state.dots = [...(state.dots || []), ...found.dots];
    },
  ) {
    const line = h("span", { class: "tpx-caption", role: "status" });
    const button = h("button", { type: "button", class: "tpx-measure", onclick: press }, "Measure here");
    let running = false;
    panel.card.append(h("p", { class: "tpx-live" }, button, " ", line));

    function show(words, on, wrong = false) {
      running = on;
      line.textContent = words;
      line.classList.toggle("tpx-is-wrong", wrong);
      button.textContent = on ? "Stop" : "Measure here";
    }

    function press() {
      if (running) {
        model.send({ ask: "stop" });
        show("Stopped.", false);
        return;
      }
      const chosen = point(panel.state);
      if (!chosen) {
        show("Choose a point first.", false, true);
        return;
      }
      model.send({ ask: "measure", point: chosen });
      show("Starting ranks…", true);
    }

    hear = (message) => {
      if (message.progress && running) show(message.progress, true);
      else if (message.failed) show(message.failed, false, true);
      else if (message.done) {
        receive(panel.state, message.done);
        show("Measured: it stands beside what was recorded.", false);
        panel.update();
      }
    };
    model.on("msg:custom", hear);
  }

  return {
    attach,
    close() {
      if (hear) model.off("msg:custom", hear);
      model.send({ ask: "stop" });
    },
  };
};
