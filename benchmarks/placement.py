"""Topic placement of real documents at the top level of the shipped taxonomy.

    python -m benchmarks.placement            about 8 minutes, most of it embeddings on a CPU

Documents of the test data: English sections of textbooks on sociology, psychology, statistics and political science
(260 of each), Korean documentation of React and Rust, bills and the constitution. A document is right if the nearest topic
lies in the domain of its source. The shipped tree was written without these documents; nothing is fitted to them.

Arms: TF-IDF over character n-grams (both languages; no model), sentence embeddings of all-MiniLM-L6-v2 (English only), and
the sum of both cosines.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import numpy as np

from align.builtin_models import build
from benchmarks import harness
from data_gen.embedding import Embedder
from data_gen.taxonomy import TopicIndex, load_taxonomy

MAX_CHARS = 2000  # of a document, as recipes cut them
DOMAINS = {
    "openstax/osbooks-introductory-statistics-bundle": "mathematics-and-statistics",
    "openstax/osbooks-psychology": "psychology",
    "openstax/osbooks-introduction-political-science": "politics-and-government",
    "openstax/osbooks-introduction-sociology": "sociology",
    "reactjs/ko.react.dev": "computing",
    "rust-kr/doc.rust-kr.org": "computing",
    "konlpy:kobill": "law",
    "konlpy:kolaw": "law",
}


def similarities(index: TopicIndex, documents: list[dict[str, Any]], embedder: Embedder | None) -> dict[str, np.ndarray]:
    """(documents, topics) by arm."""
    texts = [document["text"][:MAX_CHARS] for document in documents]
    found = {"tf-idf": index.similarity(texts)}
    if embedder is not None:
        found["embedding"] = embedder(texts) @ embedder(index.texts).T
        found["sum"] = found["tf-idf"] + found["embedding"]
    return found


def main() -> int:
    """Place, count, print."""
    harness.arguments(__doc__ or "", repeats=1).parse_args()
    data = harness.test_data()
    if data is None:
        return 2
    tree = load_taxonomy(None)
    domain = {leaf.id: leaf.path.split("/")[0] for leaf in tree.leaves}
    rows = []
    best = 0.0
    for lang in ("en", "ko"):
        documents = [json.loads(line) for line in (data / f"corpus/web_{lang}.jsonl").read_text("utf-8").splitlines()]
        index = TopicIndex(tree, lang)
        embedder = Embedder(build("all-minilm-l6-v2")) if lang == "en" else None
        for arm, table in similarities(index, documents, embedder).items():
            placed = [domain[index.ids[k]] for k in table.argmax(axis=1)]
            right = [place == DOMAINS[document["source"]] for place, document in zip(placed, documents, strict=True)]
            of_source = Counter(document["source"] for document in documents)
            right_of = Counter(d["source"] for d, ok in zip(documents, right, strict=True) if ok)
            by_source = {source: right_of[source] / count for source, count in of_source.items()}
            accuracy = sum(right) / len(right)
            rows.append({"lang": lang, "arm": arm, "documents": len(right), "accuracy": accuracy, "by_source": by_source})
            print(f"  {lang} {arm:10} {accuracy:.3f} of {len(right)}; " + ", ".join(
                f"{source.split('/')[-1]} {share:.2f}" for source, share in by_source.items()
            ))  # fmt: skip
            best = max(best, accuracy) if lang == "en" else best
    harness.write_result("placement", rows)
    return 0 if harness.bar("placement", best, ">=", 0.85) else 1


if __name__ == "__main__":
    sys.exit(main())
