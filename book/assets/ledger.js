// The ledger's filter: three choices, kept in the page's address, and how many claims are left. The table stands
// without it.
(function () {
  "use strict";
  var form = document.querySelector(".ledger-filter");
  var table = document.querySelector("table.ledger");
  var count = document.querySelector(".ledger-count");
  if (!form || !table || !count) return;
  var rows = Array.prototype.slice.call(table.tBodies[0].rows);
  var order = ["right", "wrong", "outdated", "vague"];

  var choices = Array.prototype.slice.call(form.querySelectorAll("select"));

  function apply() {
    var wanted = choices.filter(function (s) { return s.value; });
    var counts = {};
    rows.forEach(function (row) {
      row.hidden = !wanted.every(function (s) { return row.dataset[s.name] === s.value; });
      if (!row.hidden) counts[row.dataset.verdict] = (counts[row.dataset.verdict] || 0) + 1;
    });
    var parts = order.filter(function (v) { return counts[v]; }).map(function (v) { return counts[v] + " " + v; });
    var left = rows.filter(function (row) { return !row.hidden; }).length;
    count.textContent = left
      ? left + (left === 1 ? " claim: " : " claims: ") + parts.join(", ") + "."
      : "No claim matches: ";
    if (!left) count.appendChild(all());
  }

  function all() {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = "show all";
    button.addEventListener("click", function () { form.reset(); choices[0].focus(); });
    return button;
  }

  function remember() {  // a view can be linked to: ledger.html?diagram=2&verdict=wrong
    var query = choices.filter(function (s) { return s.value; }).map(function (s) { return s.name + "=" + s.value; });
    try {
      history.replaceState(null, "", location.pathname + (query.length ? "?" + query.join("&") : "") + location.hash);
    } catch (e) { /* a browser that keeps the address of a file as it is */ }
  }

  function recall() {
    var query = new URLSearchParams(location.search);
    choices.forEach(function (s) {
      s.value = query.get(s.name) || "";
      if (s.selectedIndex < 0) s.value = "";
    });
  }

  function changed() { apply(); remember(); }

  function reveal() {  // a link to a claim shows it, whatever is chosen
    var row = document.getElementById(location.hash.slice(1));
    if (row && row.hidden) { form.reset(); apply(); row.scrollIntoView(); }
  }

  form.addEventListener("change", changed);
  form.addEventListener("reset", function () { setTimeout(changed, 0); });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  window.addEventListener("hashchange", reveal);
  form.hidden = false;
  recall();
  apply();
  reveal();
})();
