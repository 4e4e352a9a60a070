"""Prints results of lmms-eval beside the paper's Table 3.

python -m lmms_eval --model tokenflow --model_args pretrained=FOLDER --tasks pope,gqa --output_path runs/lmms
python tools/lmms_table.py --name mine runs/lmms/*/*_results.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenflow.evaluation.lmms_results import CAUTION, read_lmms_scores
from tokenflow.evaluation.paper_understanding import as_markdown, as_text, beside_ours


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="*_results.json of lmms-eval; later files win")
    parser.add_argument("--name", default="ours", help="name of the row")
    parser.add_argument("--source", choices=("Table 3", "Table 9"), default="Table 3")
    parser.add_argument("--markdown", action="store_true")
    chosen = parser.parse_args()
    scores = read_lmms_scores(chosen.results)
    table = beside_ours(name=chosen.name, scores=dict(scores), caution=CAUTION, source=chosen.source)
    print(as_markdown(table) if chosen.markdown else as_text(table))


if __name__ == "__main__":
    main()
