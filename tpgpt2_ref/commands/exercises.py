"""List the course's exercises, or check that every solution passes its own grader.

  python -m tpgpt2_ref exercises
  python -m tpgpt2_ref exercises --json
  python -m tpgpt2_ref exercises --run-solutions
"""
from __future__ import annotations

from ..course.exercises.catalogue import CATALOGUE
from ..errors import RankError

HELP = "list the course's exercises, or run their solutions"


def add_arguments(parser):
    parser.add_argument("--run-solutions", action="store_true",
                        help="check every solution as a reader's answer is checked; status 1 if one fails")


def run(args, world) -> dict:
    rows = [{"name": e.name, "chapter": e.chapter, "needs": e.needs, "title": e.title} for e in CATALOGUE]
    if args.run_solutions:
        from ..course.exercises.grader import own_ranks, verdict

        for entry, row in zip(CATALOGUE, rows):
            task = entry.task
            said = verdict(entry.name, task.solution() if hasattr(task, "value") else task.solution)
            row |= {"right": said.right, "message": said.message}
        if own_ranks.cache_info().currsize:
            own_ranks(3).close()
            own_ranks.cache_clear()
        if failed := [f"{row['name']} ({row['message']})" for row in rows if not row["right"]]:
            raise RankError(f"a solution fails: {'; '.join(failed)}")
    return {"exercises": rows}


def show(result) -> str:
    mark = {True: 'right  ', None: ''}
    return "\n".join(f"{mark[row.get('right')]}{row['name']:18}{row['chapter']:20}{row['needs']:9}{row['title']}"
                     for row in result["exercises"])
