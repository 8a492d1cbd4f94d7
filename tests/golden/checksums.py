"""A table whose pages carry checksums:

    python checksums.py

rewrites `retrieval/checksums.parquet`. Made with pyarrow 26.0.1.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = [{"filepath": "a.png", "title": "a red square"}, {"filepath": "b.png", "title": "a blue circle"}]

pq.write_table(pa.Table.from_pylist(ROWS), Path(__file__).parent / "retrieval/checksums.parquet", compression="none",
               use_dictionary=False, write_statistics=False, store_schema=False, write_page_checksum=True)
