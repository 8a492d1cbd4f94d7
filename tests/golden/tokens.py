"""Token ids of open_clip's SimpleTokenizer for a long list of odd texts: `python tokens.py` rewrites data/lines.json;
`python tokens.py FILE` times the tokeniser on its lines, on one thread (crates/uta-data/examples/tokens.rs is the other side);
`python tokens.py prompts FILE` writes 2,000 plain lines for that: ImageNet's class names in open_clip's templates.

Made with open_clip_torch 3.3.0, ftfy 6.3.1, regex, Python 3.11 (Unicode 14).

    [["text", [ids without the zeros]], ...]       at CLIP's 77 tokens
"""

import json
import sys
import time
from pathlib import Path

import open_clip.tokenizer
import torch

OUT = Path(__file__).parent / "data/lines.json"

# One text is left out on purpose: `'ſ` (apostrophe, long s) is a contraction to Python, which folds case, and two words here.

# One sentence a language; then changed in every way below.
SENTENCES = [
    "A photo of the small tench, caught at dawn.", "El niño soñó con un pingüino en la montaña.",
    "L'élève a mangé des crêpes à Noël, voilà !", "Der große Bär läuft über die Straße.",
    "O avião pousou às três da manhã em São Paulo.", "Perché la città è così bella?",
    "Žluťoučký kůň úpěl ďábelské ódy.", "Zażółć gęślą jaźń, proszę.", "Árvíztűrő tükörfúrógép",
    "Şişli'de ılık bir İstanbul akşamı", "Știință și tehnologie în România", "Smørrebrød på Ærø og blåbær",
    "Þetta er íslenskur hestur", "Ķekava, Rīga un Liepāja", "Ąžuolas ir šermukšnis", "Съешь ещё этих мягких булок",
    "Їжак їсть ґрунт, є й кіт", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.", "Το παιδί ΤΗΣ ΠΟΛΗΣ", "שלום עולם, חתול על הגג",
    "مرحبا بالعالم، قطة على السطح", "یک گربه روی بام", "नमस्ते दुनिया, छत पर बिल्ली", "ছাদে একটি বিড়াল",
    "கூரையில் ஒரு பூனை", "పైకప్పు మీద పిల్లి", "മേൽക്കൂരയിൽ ഒരു പൂച്ച", "แมวบนหลังคา", "ຍິນດີຕ້ອນຮັບ", "မင်္ဂလာပါ",
    "ស្វាគមន៍", "Con mèo trên mái nhà, tiếng Việt", "屋顶上的猫。", "屋根の上の猫、テキストです。", "지붕 위의 고양이", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
    "ሰላም ልዑል", "Բարեւ աշխարհ", "გამარჯობა მსოფლიო", "ᠮᠣᠩᠭᠣᠯ", "བཀྲ་ཤིས་བདེ་ལེགས།", "𐌰𐌱𐌲 𝒜𝓁𝓅𝒽𝒶 𝔘𝔫𝔦", "Ɓɗɛ̀ ŋ́ ɔ̃",
    "price: £5, €7, ¥9 — or 50¢?", "“curly” ‘quotes’ … and – dashes — ‹›«»", "naïve café, Ångström, 20 °C", "a ☕ 😀 ✔ 🐈‍⬛ 🇫🇷",
]
ENCODINGS = ["latin-1", "sloppy-windows-1252", "sloppy-windows-1251", "sloppy-windows-1250", "sloppy-windows-1253",
             "sloppy-windows-1254", "sloppy-windows-1257", "iso-8859-2", "macroman", "cp437"]

PLAIN = [
    "", " ", "   \t\n ", "a", "A", "a diagram", "itap of a great white shark.", "a photo of many {}.", "2023", "3.14159", "1,000,000",
    "1st 2nd 3rd 4x4 b2b h264", "０１２３ ٣٤٥ ०१२ ๑๒๓ 〇一二 Ⅷ ⅷ ½ ¾ ² ³ ⁵ ₂ ① ⑳ ㊀ 𝟘𝟙 𝟛", "it's IT'S they're They'Re I've I'D don't y'all'd've",
    "it’s they’re I’ve we’ll I’d don’t I’m", "'s 't 're 've 'm 'll 'd", "rock'n'roll o'clock '90s dogs'", "itʼs ʻokina ‛n",
    "snake_case and-dashes/slashes\\back", "...!!!???", "!", "!!", "\"\"", "a.b.c.d", "http://www.example.com/a?b=c&d=e#f", "me@example.org",
    "@user #hashtag $AAPL 100%", "C++ C# .NET f(x)=y^2", "~`|{}[]<>", "<br/>line<br>break", "a<b>bold</b>c", "<html>&amp;&lt;</html>",
    "<start_of_text>", "<end_of_text>", "<START_OF_TEXT> x", "a<end_of_text>b", "!<end_of_text>", "<start_of_text><end_of_text>", "<|startoftext|> <|endoftext|>",
    "< start_of_text >", "<start_of_text", "&lt;end_of_text&gt; &lt;start_of_text&gt;", "word</w> </w> w>", "hello</w>there",
    "x" * 80, "x" * 300, "ab" * 200, "aaa " * 70, "word " * 74, "word " * 75, "word " * 76, "word " * 100, "1" * 74, "1" * 75, "1" * 76, "!" * 400,
    "é" * 100, "猫" * 80, "😀" * 40, "<end_of_text>" * 80, "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "pneumonoultramicroscopicsilicovolcanoconiosis", "Donaudampfschifffahrtsgesellschaftskapitänsmütze",
]
SPACES = [chr(c) for c in [9, 10, 11, 12, 13, 0x1C, 0x1D, 0x1E, 0x1F, 0x20, 0x85, 0xA0, 0x1680, 0x180E, *range(0x2000, 0x2010), 0x2028, 0x2029,
          0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF, 0xAD, 0x200D]]
CONTROLS = [chr(c) for c in [0, 1, 7, 8, 0xE, 0x1A, 0x1B, 0x7F, *range(0x80, 0xA0, 3), 0x61C, 0x202A, 0x202E, 0x2066, 0x206A, 0x206F, 0xFFF9, 0xFFFC,
            0xFFFD, 0xFFFE, 0xE000, 0xF8FF, 0xE0041, 0x10FFFF]]
ENTITIES = [
    "rock &amp; roll", "rock &amp;amp; roll", "&amp;amp;amp;amp; deep", "&lt;b&gt;bold&lt;/b&gt;", "&amp;lt;twice&amp;gt;", "&#39;quoted&#39;", "&#x27;hex&#X27;",
    "&quot;said&quot;", "&QUOT;SAID&QUOT;", "caf&eacute; caf&EACUTE; CAF&Eacute;", "P&EACUTE;REZ STRA&SZLIG;E", "&ntilde; &NTILDE; &nTILDE;", "&hellip;&mdash;&ndash;&nbsp;x",
    "no semicolon &amp x &lt y &eacute z &copy2023", "&notit; &notin; &not &NOT;", "this&not that &times2", "&unknown; & &; &&amp;&", "&#0; &#1; &#x7f; &#11; &#13;x",
    "&#128; &#145;q&#146; &#x80; &#x81; &#150;", "&#xD800; &#x110000; &#99999999999999; &#xFFFE; &#xFDD0;", "&#12354;&#x3042;", "&#59; &semi; a&semi;b", "&#38;amp; &amp;#38; &amp;#x26;amp;",
    "&#8217;s it&#8217;s &rsquo;d", "&#x1F600; &#128512;", "&CounterClockwiseContourIntegral; &fjlig; &NotEqualTilde; &bne;", "&sup2; &SUP2; &frac12; &FRAC12;", "AT&T R&D Q&A; B&B;",
    "&lt;script&gt;alert(1)&lt;/script&gt; < &amp;", "first &amp;\nsecond < &amp;\nthird &amp;amp;", "&#x;&#; &#xZ; &# 39;", "&Jscr;ohn &HilbertSpace;ancock &checkmark;",
    "&nbsp;&nbsp;&emsp;&thinsp;&zwj;&zwnj;&shy;end", "&Tab;a&NewLine;b", "&aacute;&Aacute;&AACUTE;&aaCute;", "&lt3 &gt5 &ampersand &copy;right&reg", "&quot&quot;&apos;&apos", "&amp;nbsp;&amp;eacute;&amp;#233;",
    "&Atilde;&copy; &Acirc;&pound;5", "&ATILDE;&COPY;", "&iuml;&raquo;&iquest;bom", "x&euro;y&pound;z&yen;", "&#65;&#x42;&#67", "&LT;&GT;&AMP;&COPY;&REG;&TRADE;", "&lang;&rang;&lfloor;",
]
EMOJI = [
    "😀", "😀😃😄", "👍🏽", "👍🏿👍", "👩‍🚀", "👨‍👩‍👧‍👦 family", "🏳️‍🌈", "🏴󠁧󠁢󠁷󠁬󠁳󠁿 wales", "🇯🇵🇺🇸", "1️⃣ 2️⃣ #️⃣", "❤️ ❤ ♥", "🧑🏻‍❤️‍💋‍🧑🏿", "☺️☹", "🫠🫡", "a😀b", "😀1😀", "!😀!", "🐈‍⬛", "🤷🏽‍♀️ shrug", "™️©️®️", "⌚🕰️", "(╯°□°)╯︵ ┻━┻", "¯\\_(ツ)_/¯", "ಠ_ಠ", "ʕ•ᴥ•ʔ",
]
LETTERS = [
    "ﬀ ﬁ ﬂ ﬃ ﬄ ﬅ ﬆ", "ﬁsh ﬂour oﬃce baﬄe ﬅop", "Ĳssel ĳs ŉ Ǆ ǅ ǆ Ǉ ǈ ǉ Ǌ ǋ ǌ Ǳ ǲ ǳ", "ﬓ ﬔ ﬡ שׁ", "ﷺ ﷲ ﻻ", "Ｆｕｌｌ ｗｉｄｔｈ！？（）～", "ﾊﾝｶｸ ｶﾀｶﾅ ｶﾞｷﾞﾊﾟ", "ﾡﾢﾣ ￠￡￢￣￤￥￦ ￨￩￪ ﾠ", "＜start_of_text＞ ＆ａｍｐ；",
    "e\u0301 a\u030a n\u0303 o\u0308", "cafe\u0301 decomposed", "q\u0323\u0307 s\u0307\u0323", "\u0301 alone \u0345 a\u0345b 1\u0345!", "Z\u0351\u036b\u0343a\u0335lgo\u0322\u0353", "한 \u1112\u1161\u11ab \u1100\u1161", "\u212b \u2126 \u212a ℌ ﬀ", "\u0958 \u095c \u09dc",
    "İ I ı i İSTANBUL", "ß ẞ STRASSE Straße", "ΌΣΟΣ ΣΑΣ Σ ΑΣ. ΑΣ'Σ ΑΣ1 ΑΣ\u0301 ς", "Σ", "ΑΣ", "ǅungla ǈ ᾈ ᾳ ῼ", "ÀÉÎÕÜ ÿŸ Œœ Ææ Øø", "ſ ſtart ſs", "K Å Ω", "Ⅷ Ⓐⓐ ㋿ ㍻", "ა Ა Ⴀ ⴀ", "Ꭰ ꭰ", "Ա և ﬓ", "𐐀𐐨 𞤀𞤢", "ŁÓDŹ Łódź",
    "ª º ʰ ⁿ ₐ ᵃ", "_ ‿ ⁀", "〆 々 ゝ ヽ ー ゛ ゜", "․‥…", "\u00b7 \u0387 \u30fb \u2022", "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f \u2032\u2033 \u00ab\u00bb", "ʼ ʻ ʹ ' `´", "1\u20444 1⁄4", "x\u0338= \u2260", "अ\u093c क्ष ज्ञ", "ก็ ำ ํา", "ไก่", "ا\u0654 \u0623", "\u05e9\u05c1 \u05d0\u05b7",
]
BROKEN = [
    "âœ” No problems", "doesnâ€™t itâ€™s Iâ€™ve", "â€œlike thisâ€\x9d", "â€œlike this â€�", "â€œ like â€ť", "Ã la carte", "voilÃ le travail", "Ã quele Ã s Ã quilo", "Ã  la mode", "sÃ³", "Â£5 and Â©", "10Â°C Â½ cup", "fooÂ bar Â baz", "Â bar", "caf\u00c3\u00a9 cr\u00c3\u00a8me br\u00c3\u00bbl\u00c3\u00a9e",
    "schÃƒÂ¶n", "ÃƒÆ’Ã‚Â©", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "РїСЂРёРІРµС‚", "вЂњquotesвЂќ", "Ñ‚ÐµÑÑ‚", "æ—¥æœ¬èªž", "ðŸ˜€ grin", "ðŸ‘\x8d", "ã\x83\x84", "&macr;\\_(ã\x83\x84)_/&macr;", "LiÃ¨ge Avenue de lâ€™HÃ´pital", "Õ¡Ö€", "Ø§Ù„Ø¹Ø±Ø¨ÙŠØ©", "à¤¹à¤¿à¤¨à¥\x8dà¤¦à¥€",
    "√© caf√©", "‚Äúquoted‚Äù", "‚Äì ‚Äî", "≈° ≈Ω", "├® ├⌐ caf├⌐", "ΓÇ£hiΓÇ¥", "β€™ βετα", "Ëœ Å“ Å’", "l\u2019Å“uvre", "naÃ¯ve and naïve", "mixed Ã© é and â€™ ’", "Mojibake â€“ in the middle — of good text", "\x91quoted\x92 \x93double\x94 \x85 \x96", "C1 \x99 \x80 \x8d only", "a\x80b",
    "\x1b[36;44mI'm blue\x1b[0m", "\x1b[K \x1b[1;31m", "\x1b[ǳ36m \x1b\x00[1m", "Ã", "Â", "Ã Â", "Å", "Ångström Å Åland", "ÅÄÖ åäö", "UÃ±a", "Ã‰cole", "Ã\x89cole", "Ãcole", "Ã?cole", "caf� au lait", "caf\u00c3\ufffd", "â€\ufffd", "ï»¿bom", "ÿþ", "þÿ", "í ½í¸€", "í\xa0½í¸\x80", "À\x80 null", "\xed\xa0\xbd\xed\xb8\x80",
    "¡Hola! ¿Qué?", "100 €", "€ 100", "5 µm ± 2 ÷ 3 × 4", "§ 5 ¶ 2", "¬ ¦ ¨ ¸ ¯", "œuvre Œuvre cœur", "œ", "N°5 No. № 5", "À°", "Ø±", "façade €5 £5", "é€ è€", "ê³ ì–‘ì\x9d´", "Ç±", "HÃ¤agen", "ã€€", "ã\x80\x80space", "Ã¢â‚¬â„¢", "Ãƒâ€šÃ‚Â£", "It\u00e2\u20ac\u2122s 5 o\u00e2\u20ac\u2122clock",
    "The Mona Lisa doesn\u00c3\u00a2\u00e2\u201a\u00ac\u00e2\u201e\u00a2t have eyebrows.", "L&AMP;AMP;ATILDE;&AMP;AMP;SUP3;PEZ", "\u00e2\u0080\u009cC1 kept\u00e2\u0080\u009d", "Ä\x8deÅ¡tina", "Ĺˇ ÄŤ", "Å¾ivot", "Ķ€ ā€™ ā€œ", "line one Ã©\nline two é\r\nline three â€™\rfour\u2028five\u2029six\x85seven",
    "P\u00c3\u00a9rez &eacute; \ufb01", "\u0432\u0402\u045a", "ГўВЂВ™ test", "\u00d0\u00a1\u00d0\u00a1\u00d0\u00a1\u00d0\u00a0", "à² \u005f à² ", "Â¯\\_(ãƒ„)_/Â¯", "‚Ä¶", "¬´ ¬∑", "Â \xa0 x", "a Â b. Â «c»", "×² ×³ ×ª", "ŸŠ", "à¹\x81à¸¡à¸§", "Ã­", "Ã\xad", "Ã ", "Ã\xa0",
]


def lines():
    texts = list(PLAIN) + ENTITIES + EMOJI + LETTERS + BROKEN + SENTENCES
    texts += [f"a{c}b {c}c{c}" for c in SPACES] + [f"a{c}b {c}" for c in CONTROLS]
    texts.append("".join(SPACES))
    texts.append("".join(CONTROLS))
    for i, sentence in enumerate(SENTENCES):
        texts.append(sentence.upper())
        texts += [sentence.title() + " " + sentence.swapcase()]
        raw = sentence.encode()
        # Every sentence in two of the encodings, in turn; the common one always; and once more on top.
        for encoding in {ENCODINGS[1]: 1, ENCODINGS[i % 10]: 1, ENCODINGS[(3 * i + 2) % 10]: 1}:
            wrong = raw.decode(encoding, "replace")
            texts.append(wrong)
            if i % 4 == 0:
                texts.append(wrong.encode().decode("sloppy-windows-1252", "replace"))
            if i % 5 == 0:
                texts.append(f"{sentence} | {wrong}")
            if i % 6 == 0:
                texts.append(wrong.replace("\xa0", " "))
                texts.append(wrong.replace("\x81", "\ufffd").replace("\x9d", "\ufffd"))
        texts.append(raw.decode("windows-1252", "replace"))
        texts.append("".join(f"&#{ord(c)};" if ord(c) > 126 else c for c in sentence))
    return list(dict.fromkeys(texts))


def write():
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    rows = []
    for text in lines():
        ids = tokenizer([text])[0].tolist()
        while ids[-1] == 0:
            ids.pop()
        rows.append([text, ids])
    OUT.write_text("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")
    print(len(rows), "lines")


def measure(path, seconds=3.0):
    torch.set_num_threads(1)
    texts = Path(path).read_text()
    texts = [row[0] for row in json.loads(texts)] if path.endswith(".json") else texts.splitlines()
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    tokenizer(texts)
    rounds, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        tokenizer(texts)
        rounds += 1
    print(f"{rounds * len(texts) / (time.perf_counter() - start):.0f} lines/s of {len(texts)} lines")


def prompts(path):
    names, templates = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    lines = [templates[(7 * i) % 80](names[i % 1000]) for i in range(2000)]
    Path(path).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            write()
        case ["prompts", path]:
            prompts(path)
        case [path]:
            measure(path)
