// The ledger's filter: three choices, and how many claims are left. The table stands without it.
(function () {
  "use strict";
  var form = document.querySelector(".ledger-filter");
  var table = document.querySelector("table.ledger");
  var count = document.querySelector(".ledger-count");
  if (!form || !table || !count) return;
  var rows = Array.prototype.slice.call(table.tBodies[0].rows);
  var order = ["right", "wrong", "outdated", "vague"];

  function apply() {
    var wanted = Array.prototype.slice.call(form.querySelectorAll("select")).filter(function (s) { return s.value; });
    var counts = {};
    rows.forEach(function (row) {
      row.hidden = !wanted.every(function (s) { return row.dataset[s.name] === s.value; });
      if (!row.hidden) counts[row.dataset.verdict] = (counts[row.dataset.verdict] || 0) + 1;
    });
    var parts = order.filter(function (v) { return counts[v]; }).map(function (v) { return counts[v] + " " + v; });
    var left = rows.filter(function (row) { return !row.hidden; }).length;
    count.textContent = left + (left === 1 ? " claim" : " claims") + (parts.length ? ": " + parts.join(", ") + "." : ".");
  }

  form.addEventListener("change", apply);
  form.addEventListener("reset", function () { setTimeout(apply, 0); });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  window.addEventListener("hashchange", function () {  // a link to a claim shows it, whatever is chosen
    var row = document.getElementById(location.hash.slice(1));
    if (row && row.hidden) { form.reset(); apply(); row.scrollIntoView(); }
  });
  form.hidden = false;
})();
