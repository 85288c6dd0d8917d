"""The fault campaign's short form: one try of a fault of each kind, recorded as the long one is."""
from tests import faults
from tests.fault_kinds import KINDS
from tpgpt2_ref.bench.two_hosts import missing
from tpgpt2_ref.figures.hangs import not_always
from tpgpt2_ref.recorded import results

SHORT = ("cell:raises,cell:killed,cell:never joins,cell:shapes ?2*,cell:float32 and int32,cell:asynchronous*,"
         "cell:overwrites*,cell:threads*,interrupt:interrupted forty*,around:folder removed b*,around:stream left*,"
         "stranger:*,command:RANK=5*,leak:left by generate*SIGKILL,malformed:*")


def test_one_try_of_each_kind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(faults, "MALFORMED_A_TRY", 10)
    assert faults.main(["--tries", "1", "--workers", "2", "--only", SHORT, "--out", str(tmp_path)]) == 0, \
        capsys.readouterr()
    run, = results.recorded("faults", tmp_path)
    kinds = 14 + (missing() is None)
    assert len(run.rows) == kinds
    assert {row["group"] for row in run.rows} | {"stranger"} == {kind.group for kind in KINDS}
    assert all(row["recovered"] == row["said"] == row["tries"] and row["side_by_side"] == 2 for row in run.rows)
    assert faults.main(["--only", "cell:raises", "--tries", "2", "--out", str(tmp_path)]) == 0
    again, = results.recorded("faults", tmp_path)
    assert [row["tries"] for row in again.rows if row["fault"] == "raises"] == [2] and len(again.rows) == kinds


def test_a_kind_that_did_not_always_recover_is_named():
    rows = [{"fault": "a", "recovered": 6, "tries": 10}, {"fault": "b", "recovered": 10, "tries": 10}]
    assert "a (6 of 10)" in not_always(rows) and "b (" not in not_always(rows) and not_always(rows[1:]) == ""
