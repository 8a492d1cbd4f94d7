"""The tables behind the repair of wrongly decoded text, taken from ftfy: `python mojibake.py` rewrites
crates/uta-data/assets/mojibake.tsv. Made with ftfy 6.3.1 (Apache-2.0, see the assets' README).

    bad        NAME of a pattern: one alternative of ftfy.badness, a sign of wrong decoding, a line
    clues      the classes of characters that look like the bytes of UTF-8
    altered    UTF-8 whose byte A0 became a space; lossy: UTF-8 with a byte lost
    ENCODING   the code points of bytes 80 to FF

Everything is ASCII and in the syntax of Rust's regular expressions.
"""

import re
from pathlib import Path

from ftfy import badness, chardata

OUT = Path(__file__).parents[2] / "crates/uta-data/assets/mojibake.tsv"
# Python's classes are wider or narrower than Rust's.
CLASSES = {r"\s": r"[\s\x1c-\x1f]", r"\w": r"[\p{L}\p{N}_]"}


def escape(char):
    return char if " " <= char <= "~" else f"\\x{{{ord(char):X}}}"


def compact(pattern):
    """A verbose pattern without its white space and remarks, top-level alternatives apart."""
    parts, out, within, i = [], "", False, 0
    while i < len(pattern):
        c = pattern[i]
        if c == "\\":
            pair = pattern[i : i + 2]
            if pair in CLASSES:
                out += CLASSES[pair]
                i += 2
            else:
                width = {"x": 4, "u": 6}.get(pair[1], 2)
                out += escape(chr(int(pattern[i + 2 : i + width], 16))) if width > 2 else pair
                i += width
            continue
        if within:
            within = c != "]"
            out += escape(c)
        elif c == "#":
            while pattern[i] != "\n":
                i += 1
        elif c == "|":
            parts.append(out)
            out = ""
        elif not c.isspace() or c == "\xa0":
            within = c == "["
            out += escape(c)
        i += 1
    return parts + [out]


def by_bytes(pattern):
    pattern = re.sub(rb"[\x80-\xff]|\x1a", lambda m: b"\\x%02X" % m.group(0)[0], pattern)
    return pattern.decode("ascii")


rows = [("bad", part) for part in compact(badness.BADNESS_RE.pattern)]
for name in ["utf8_continuation_strict", "utf8_continuation", "utf8_first_of_2", "utf8_first_of_3", "utf8_first_of_4"]:
    rows.append((name, "[" + compact("[" + chardata.UTF8_CLUES[name] + "]")[0].strip("[]") + "]"))
rows.append(("altered", by_bytes(chardata.ALTERED_UTF8_RE.pattern)))
rows.append(("lossy", by_bytes(chardata.LOSSY_UTF8_RE.pattern)))
for encoding in chardata.CHARMAP_ENCODINGS:
    rows.append((encoding, " ".join(f"{ord(c):X}" for c in bytes(range(0x80, 0x100)).decode(encoding))))
OUT.write_text("".join(f"{name}\t{value}\n" for name, value in rows))
