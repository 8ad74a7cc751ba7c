# python -m pytest tests/unit/test_corpus.py
"""Documents of every kind become passages that a reader can trace back to their source."""

import itertools
import json
import os
import re
import textwrap
import zipfile

import pytest

from utils import beir_files, conversion, corpus, documents, preflight
from utils.files import digest
from utils.records import passage_text
from utils.run import CourseError

SENTENCE = "Close valve number {0} before the main pump is started, since pressure in line {0} rises."
PROSE = " ".join(SENTENCE.format(i) for i in range(40))
TABLE = "| Part | Number |\n|---|---|\n" + "\n".join(f"| seal {i} | 30-{i} |" for i in range(8))
CODE = "```\n" + "\n".join(f"set pump.{i} on" for i in range(12)) + "\n```"


def tokenizer(text, **_):
    """Words and punctuation marks, as a BERT tokenizer starts out."""
    return {"input_ids": re.findall(r"\w+|[^\w\s]", text)}


def document(text, name="a.md", title="Pumps", markdown=True):
    return documents.Document(name, title, text, markdown)


def cut(text, tokens=100, overlap=0, **about):
    return corpus.chunk([document(text, **about)], tokenizer, tokens, overlap)


def load(folder):
    documents, skipped = corpus.load_documents(folder)
    return {d.doc_id: d for d in documents}, {s.doc_id: s.reason for s in skipped}


def write_docx(path, heading, text, title=""):
    """The smallest Word file: one heading and one paragraph, and what Word calls a title."""
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    kind = "application/vnd.openxmlformats-"
    named = (
        f'<w:p><w:pPr><w:pStyle w:val="Title"/></w:pPr><w:r><w:t>{title}</w:t></w:r></w:p>' if title else ""
    )
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types">'
            f'<Default Extension="rels" ContentType="{kind}package.relationships+xml"/>'
            '<Override PartName="/word/document.xml" '
            f'ContentType="{kind}officedocument.wordprocessingml.document.main+xml"/></Types>',
        )
        file.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships">'
            f'<Relationship Id="r1" Type="{office}/officeDocument" Target="word/document.xml"/>'
            "</Relationships>",
        )
        file.writestr(
            "word/document.xml",
            f'<w:document xmlns:w="{word}"><w:body>{named}'
            f'<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>{heading}</w:t></w:r></w:p>'
            f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>",
        )
        file.writestr(
            "word/styles.xml",
            f'<w:styles xmlns:w="{word}"><w:style w:type="paragraph" w:styleId="Heading1">'
            '<w:name w:val="heading 1"/></w:style>'
            '<w:style w:type="paragraph" w:styleId="Title"><w:name w:val="Title"/></w:style></w:styles>',
        )
        file.writestr(
            "word/_rels/document.xml.rels",
            f'<Relationships xmlns="{package}/relationships">'
            f'<Relationship Id="r1" Type="{office}/styles" Target="styles.xml"/></Relationships>',
        )


def write_pdf(path, lines):
    """The smallest PDF: one page of text."""
    drawn = "BT /F1 11 Tf 50 700 Td 14 TL " + " ".join(f"({line}) Tj T*" for line in lines) + " ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, starts = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        starts.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{start:010d} 00000 n \n" for start in starts)
    trailer = f"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    path.write_bytes((out + f"xref\n0 6\n0000000000 65535 f \n{table}" + trailer).encode("ascii"))


# ---------------------------------------------------------------- loading


def test_text_files_of_every_kind_are_loaded_sorted_by_path(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text(f"# Bilge pump\n\n{PROSE}")
    (tmp_path / "a.txt").write_text(f"Anchor log\n\n{PROSE}")
    (tmp_path / "NOTES").write_text(PROSE)
    (tmp_path / ".hidden.md").write_text(PROSE)
    documents, skipped = load(tmp_path)
    assert list(documents) == ["NOTES", "a.txt", "sub/b.md"] and not skipped
    assert documents["sub/b.md"].title == "Bilge pump"
    assert documents["a.txt"].title == "Anchor log"
    assert documents["NOTES"].title == "NOTES"  # its first line is a paragraph, no title


def test_html_word_and_pdf_are_converted(tmp_path):
    page = f"<html><body><h1>Web page</h1><h2>Start</h2><p>{PROSE}</p><script>x()</script></body></html>"
    (tmp_path / "page.html").write_text(page)
    write_docx(tmp_path / "letter.docx", "Word letter", PROSE)
    write_pdf(tmp_path / "sheet.pdf", [SENTENCE.format(i) for i in range(4)])
    documents, skipped = load(tmp_path)
    assert not skipped
    assert documents["page.html"].title == "Web page" and "x()" not in documents["page.html"].text
    assert documents["letter.docx"].title == "Word letter"
    for name in documents:
        assert SENTENCE.format(2) in documents[name].text, name
    chunks = corpus.chunk([documents["page.html"]], tokenizer, 100)
    assert {c.title for c in chunks} == {"Web page > Start"}


def test_codes_come_out_of_a_page_as_they_went_in_and_its_navigation_does_not(tmp_path):
    page = f"""<html><head><title>Router  help</title></head><body><nav><a href="/">Start</a></nav>
        <h2>Settings</h2><p>Set max_flow_rate in PUMP_A7, that is 2*3*4. {PROSE}</p>
        <FOOTER class="low">Imprint and contact</FOOTER></body></html>"""
    (tmp_path / "100.html").write_text(page)
    (tmp_path / "utf16.html").write_text(page, encoding="utf-16")
    for found in load(tmp_path)[0].values():
        assert "max_flow_rate in PUMP_A7, that is 2*3*4." in found.text
        assert "Start" not in found.text and "Imprint" not in found.text
        assert found.title == "Router help", "of a page without a heading of the first level"
        chunks = corpus.chunk([found], tokenizer, 100)
        assert {c.title for c in chunks} == {"Router help > Settings"}


def test_a_word_documents_own_title_and_bold_lines_are_headings(tmp_path):
    write_docx(tmp_path / "a.docx", "Introduction", PROSE, title="Service manual of the pump")
    assert load(tmp_path)[0]["a.docx"].title == "Service manual of the pump"
    text = f"# Introduction\n\n{PROSE}\n\n# Spare parts\n\n**Mounting the pump**\n\n{PROSE}\n\n"
    text += f"**Never alone.**\n\n{PROSE}"
    (tmp_path / "pump manual.md").write_text(text)
    found = load(tmp_path)[0]["pump manual.md"]
    titles = {c.title for c in corpus.chunk([found], tokenizer, 100)}
    assert titles == {
        "pump manual > Introduction",
        "pump manual > Spare parts > Mounting the pump",
    }, "the first chapter is not the document's title, and a sentence in bold no heading"


def test_running_lines_of_a_pdf_go_and_sentences_over_pages_are_joined():
    pages = [
        f"Service manual - confidential\n\n{head}\n\n{text}\n\n{last}\n\nPage {n} of 3"
        for n, (head, text, last) in enumerate(
            [
                ("1 Start", SENTENCE.format(1), "Hold it for longer than"),
                ("ten seconds, then re-\nlease it.", SENTENCE.format(2), "Then go."),
                ("2 Stop", SENTENCE.format(3), "Press it."),
            ],
            start=1,
        )
    ]
    text = conversion.without_running_lines("\f".join(pages) + "\f")
    assert "confidential" not in text and "Page" not in text
    assert "longer than\nten seconds, then release it." in text
    assert conversion.without_running_lines("Title\n\nText") == "Title\n\nText", (
        "one page has no running lines"
    )


CHAPTERS = """Service Manual X7

1. Safety

Wear gloves.

2. Mounting

2.1 Bolts

Tighten:

1. Open the valve

2. Close the valve

until it clicks.

§ 3 Notice

In writing.

Artikel 4

Zum Jahresende.
"""


def test_chapters_and_clauses_of_a_plain_text_are_headings_and_items_of_a_list_are_not():
    chunks = cut(
        CHAPTERS.replace("Wear gloves.\n\n", "Wear gloves.\n \t\n"), title="Service Manual X7", markdown=False
    )
    found = {
        c.title.removeprefix("Service Manual X7 > "): c.text
        for c in cut(CHAPTERS, title="Service Manual X7", markdown=False)
    }
    assert found["1. Safety"] == "Wear gloves." and found["§ 3 Notice"] == "In writing."
    assert found["Artikel 4"] == "Zum Jahresende."
    assert (
        "1. Open the valve" in found["2. Mounting > 2.1 Bolts"]
        and "until it clicks" in found["2. Mounting > 2.1 Bolts"]
    )
    assert chunks


@pytest.mark.parametrize(
    ("text", "title"),
    [
        (
            "This note describes how the pump is put upon the base of\nthe site, and which tools it takes. "
            + PROSE,
            "note",
        ),
        (
            "From: a technician\nTo: the office\nSubject: Pump 7 stands still\n\nIt does. " + PROSE,
            "Pump 7 stands still",
        ),
        ("==========\nYard rules\n==========\n\n" + PROSE, "Yard rules"),
        ("Dear colleague,\n\n" + PROSE, "note"),
        ("Pump manual\n\n" + PROSE, "Pump manual"),
    ],
)
def test_the_title_of_a_plain_text_is_no_half_sentence_and_no_salutation(tmp_path, text, title):
    (tmp_path / "note.txt").write_text(text)
    assert load(tmp_path)[0]["note.txt"].title == title


def test_a_paragraph_that_ends_in_a_question_stays_a_passage():
    asked = "The scanner shows the error E70 and does not start. Can somebody look at it today?"
    assert [c.text for c in cut(f"{asked}\n\nThanks and regards.")] == [f"{asked}\n\nThanks and regards."]
    assert documents.asked("Gilt das z. B. auch für 5.2 und 5.3?") and documents.asked(
        "كيف أغير كلمة المرور؟"
    )


def test_a_picture_in_a_text_is_no_text(tmp_path):
    (tmp_path / "a.md").write_text(
        f"# Shots\n\n![shot](data:image/png;base64,{'iVBORw0KGgo' * 2000})\n\n{PROSE}"
    )
    assert len(load(tmp_path)[0]["a.md"].text) < len(PROSE) + 100


def test_anchors_tags_and_entities_are_no_part_of_a_heading():
    text = f"# Terms &amp; conditions\n\n## Deploy <a name='d'></a>\n\n{PROSE}\n\n"
    text += f"## Usage of it {{#usage}}\n\n{PROSE}"
    titles = {c.title for c in cut(text, title="Terms & conditions")}
    assert titles == {"Terms & conditions > Deploy", "Terms & conditions > Usage of it"}


def test_sentences_of_chinese_are_not_cut_in_the_middle():
    text = "维护前必须停机，并且锁定开关。" * 40
    assert all(c.text.endswith("。") for c in cut(text, 60))


FAQ = """# Yard

**How do I reset the alarm?**

Press the green button.

Then wait for a minute.

Who may climb the tower?

Only technicians with a valid course.

Q: When is A or B changed?
A or B: every three years.

## Costs

Really?

**Is this answered anywhere?**

**Nobody has answered this one?**
"""


def test_a_question_of_an_faq_heads_the_text_below_it():
    chunks = cut(FAQ, title="Yard")
    assert [(c.title, c.text) for c in chunks] == [
        ("Yard > How do I reset the alarm?", "Press the green button.\n\nThen wait for a minute."),
        ("Yard > Who may climb the tower?", "Only technicians with a valid course."),
        ("Yard > When is A or B changed?", "A or B: every three years."),
        ("Yard > Costs", FAQ[FAQ.index("Really?") :].strip()),
    ], "a question without an answer below it, or of one word, is text"
    assert all(c.text == FAQ[c.start : c.end] for c in chunks)


PLAIN = """Manual of the pump

It stands on deck 4.

1. INSTALLATION

1.1 Bolting the frame

Take four bolts.
2.5 bar are enough.

1. Open the valve

2.5 bar

How often is it greased?

Every week, with grease that
Q: Who may order it?
The chief.

3.1 Left empty
"""


def test_numbered_lines_and_questions_of_a_plain_text_are_headings():
    chunks = corpus.chunk(
        [documents.Document("pump.txt", "Manual of the pump", PLAIN, False)], tokenizer, 100
    )
    path = "Manual of the pump > 1. INSTALLATION > 1.1 Bolting the frame"
    assert [(c.title, " ".join(c.text.split())) for c in chunks] == [
        ("Manual of the pump", "It stands on deck 4."),
        (path, "Take four bolts. 2.5 bar are enough. 1. Open the valve 2.5 bar"),
        (f"{path} > How often is it greased?", "Every week, with grease that"),
        (f"{path} > Who may order it?", "The chief. 3.1 Left empty"),
    ]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Die Pumpe läuft für 30 Minuten über dem zulässigen Druck. Schließen Sie die Öffnung.", "latin-1"),
        ("Le café est servi à l’arrière, près de la fenêtre. Vérifiez la pompe à eau chaque jour.", "cp1252"),
        ("The café pump runs at 30 °C and 5 µm filters are fitted on the naïve side of the room.", "latin-1"),
        ("Насос работает слишком громко. Проверьте подшипник и замените масло сегодня же.", "cp1251"),
        ("Die Pumpe läuft für 30 Minuten über dem zulässigen Druck. Prüfen Sie täglich.", "utf-16"),
        ("Die Pumpe läuft für 30 Minuten über dem zulässigen Druck. Prüfen Sie täglich.", "utf-8-sig"),
    ],
)
def test_old_encodings_are_read_letter_by_letter(tmp_path, text, encoding):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert load(tmp_path)[0]["a.txt"].text == text


@pytest.mark.parametrize("charset", ["", '<meta charset="utf-16">'])
def test_a_page_in_utf_16_is_read_or_left_out(tmp_path, charset):
    text = "Насос проверяют каждое утро до прихода экипажа. Затем смазывают подшипник. " * 3
    page = f"<html><head>{charset}</head><body><h1>Насос</h1><p>{text}</p></body></html>"
    (tmp_path / "marked.html").write_bytes(page.encode("utf-16"))
    (tmp_path / "torn.html").write_bytes(b"\xef\xbb\xbf" + page.encode("utf-16-le"))
    documents, skipped = load(tmp_path)
    assert documents["marked.html"].title == "Насос" and text[:60] in documents["marked.html"].text
    assert "torn.html" in skipped or "\0" not in documents["torn.html"].text


def test_unusable_files_are_left_out_with_the_reason(tmp_path):
    (tmp_path / "good.md").write_text(PROSE)
    (tmp_path / "empty.md").write_bytes(b"")
    (tmp_path / "short.txt").write_text("Too little.")
    (tmp_path / "nul.txt").write_bytes(b"\x00\x01\x02\x03" * 200)
    (tmp_path / "photo").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 20)
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    write_docx(tmp_path / "broken.docx", "Half a letter", PROSE)
    (tmp_path / "broken.docx").write_bytes((tmp_path / "broken.docx").read_bytes()[:600])
    documents, skipped = load(tmp_path)
    assert list(documents) == ["good.md"]
    assert skipped["empty.md"] == "empty file"
    assert "shorter than 50" in skipped["short.txt"]
    assert "binary" in skipped["nul.txt"] and "binary" in skipped["photo"]
    assert ".png" in skipped["photo.png"]
    assert "could not be converted" in skipped["broken.docx"]


def test_a_missing_folder_says_where_it_was_looked_for():
    with pytest.raises(CourseError, match=r"CORPUS = 'no/such' does not exist.*Give an existing path"):
        corpus.read_chunks("no/such", tokenizer, 100)


def test_a_folder_without_documents_says_what_to_put_there(tmp_path):
    with pytest.raises(CourseError, match=r"it is empty.*Put \.md"):
        corpus.load_documents(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(CourseError, match=r"a\.png: files of type \.png are not read"):
        corpus.load_documents(tmp_path)
    with pytest.raises(CourseError, match="not a folder"):
        corpus.load_documents(tmp_path / "a.png")


def test_front_matter_names_the_document_and_is_no_text(tmp_path):
    (tmp_path / "a.md").write_text(f'---\nauthor: x\ntitle: "Rudder care"\n---\n{PROSE}')
    (tmp_path / "b_two.md").write_text(f"---\ntitle:\nauthor: x\n---\n{PROSE}")
    documents, _ = load(tmp_path)
    assert [d.title for d in documents.values()] == ["Rudder care", "b two"]
    assert all("author" not in c.text for c in corpus.chunk(documents.values(), tokenizer, 100))


def test_a_rule_at_the_top_is_no_front_matter(tmp_path):
    (tmp_path / "a.md").write_text(f"---\n\n# Pump manual\n\nFirst part: {PROSE}\n\n---\n\n## Two\n\n{PROSE}")
    found, _ = load(tmp_path)
    assert found["a.md"].title == "Pump manual"
    assert "First part" in " ".join(c.text for c in corpus.chunk(found.values(), tokenizer, 100))


# ---------------------------------------------------------------- cutting


@pytest.mark.parametrize("overlap", [0, 20])
@pytest.mark.parametrize("tokens", [40, 100])
def test_a_chunk_is_a_part_of_its_document_within_the_limit(tokens, overlap):
    text = f"# Pumps\n\n{PROSE}\n\n## Parts\n\n{TABLE}\n\n{CODE}\n\n- one\n- two\n\n### Öl\n\n{PROSE}"
    chunks = cut(text, tokens, overlap)
    assert len(chunks) > 10 and len({c.chunk_id for c in chunks}) == len(chunks)
    for piece in chunks:
        assert piece.text == text[piece.start : piece.end] == piece.text.strip() != ""
        assert len(tokenizer(passage_text(piece))["input_ids"]) + 2 <= piece.n_tokens <= tokens
    kept = {i for c in chunks for i in range(c.start, c.end)}
    assert not set(re.findall(r"\w+", "".join(c for i, c in enumerate(text) if i not in kept))) - {
        "Pumps", "Parts", "Öl",
    }  # fmt: skip


def test_the_heading_path_stands_in_the_title_and_not_in_the_text():
    text = "# Pumps\n\nFirst words.\n\n## Care\n\n### *Daily* [oil](o.md)\n\nCheck it.\n\n## Stop\n\nHalt."
    chunks = cut(text)
    assert [(c.title, c.text) for c in chunks] == [
        ("Pumps", "First words."),
        ("Pumps > Care > Daily oil", "Check it."),
        ("Pumps > Stop", "Halt."),
    ]


def test_permalinks_and_empty_headings_leave_no_trace_in_titles():
    chunks = cut("# Pumps\n\n## Use[¶](#use)\n\nOne word.\n\n## \n\nAnother word.")
    assert [c.title for c in chunks] == ["Pumps > Use", "Pumps"]


def test_a_heading_inside_code_opens_no_section():
    assert [c.title for c in cut("# Pumps\n\nText.\n\n```\n# start\n```\n")] == ["Pumps"]


@pytest.mark.parametrize("block", [TABLE, CODE])
def test_tables_and_code_stay_whole_when_they_fit(block):
    size = len(tokenizer(block)["input_ids"])
    text = f"# Pumps\n\n{PROSE[:300]}.\n\n{block}\n\n{PROSE}"
    assert any(block in c.text for c in cut(text, size + 10))
    small = cut(text, size // 2)
    assert not any(block in c.text for c in small) and max(c.n_tokens for c in small) <= size // 2


@pytest.mark.parametrize("markdown", [True, False])
@pytest.mark.parametrize("width", [None, 70, 90])
def test_sentences_are_not_cut_even_where_lines_are_wrapped(markdown, width):
    text = textwrap.fill(PROSE, width) if width else PROSE
    chunks = cut(text, markdown=markdown)
    assert len(chunks) > 5 and all(c.text.endswith("rises.") for c in chunks)
    assert " ".join(c.text.replace("\n", " ") for c in chunks) == PROSE
    assert all(c.n_tokens > 60 for c in chunks[:-1])  # and they are filled


def test_short_lines_of_a_log_are_cut_between_lines():
    lines = [f"10:{i:02d} Pump {i} started by Kim" for i in range(40)]
    chunks = cut("\n".join(lines), 60, title="Log", markdown=False)
    assert [line for c in chunks for line in c.text.split("\n")] == lines


def test_overlap_is_shared_by_neighbours_and_never_more_than_asked():
    chunks = cut(PROSE, 100, 30)
    shared = [a.end - b.start for a, b in itertools.pairwise(chunks)]
    assert all(n > 0 for n in shared)
    texts = [a.text[-n:] for a, n in zip(chunks, shared, strict=False)]
    assert all(len(tokenizer(text)["input_ids"]) <= 30 for text in texts)
    assert all(a.end < b.start for a, b in itertools.pairwise(cut(PROSE)))


def test_a_long_title_neither_breaks_the_limit_nor_the_overlap():
    long = "Overpressure valve of the port side auxiliary seawater cooling pump no. 4 / II - B (aft, spare)"
    chunks = cut(PROSE, 32, 16, title=f"{long} {long}")
    assert all(c.n_tokens <= 32 and c.title for c in chunks)
    assert all(len(tokenizer(c.title)["input_ids"]) <= 16 for c in chunks)
    assert len(chunks) < 250  # neighbours advance by more than a word


def test_a_text_of_a_single_line_is_title_and_passage(tmp_path):
    line = "The bilge alarm sounds when water rises above ninety millimetres."
    (tmp_path / "a.txt").write_text(line)
    assert [c.text for c in corpus.read_chunks(tmp_path, tokenizer, 100)] == [line]


@pytest.mark.parametrize(
    ("tokens", "overlap", "named"), [(31, 0, "CHUNK_TOKENS"), (100, 51, "CHUNK_OVERLAP")]
)
def test_impossible_sizes_are_refused_by_name(tokens, overlap, named):
    with pytest.raises(CourseError, match=named):
        cut(PROSE, tokens, overlap)


# ---------------------------------------------------------------- a BEIR corpus, and the preflight


def test_a_corpus_row_may_have_numbers_but_no_lists(tmp_path):
    rows = [{"_id": 1, "title": 2021, "text": "a"}, {"_id": 2, "title": None, "text": 3.5}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert beir_files.read_corpus(tmp_path / "corpus.jsonl")["1"] == {"title": "2021", "text": "a"}
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": 1, "text": ["a"]}))
    with pytest.raises(CourseError, match="row 1: title and text must be text"):
        beir_files.read_corpus(tmp_path / "corpus.jsonl")


def test_a_beir_corpus_is_used_as_it_is(tmp_path):
    rows = [
        {"_id": "z9", "title": "Pumps", "text": PROSE},  # longer than the limit: still one passage
        {"_id": "a1", "title": "", "text": ""},
        {"_id": 7, "title": "Oil", "text": "Change it."},
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    chunks = corpus.read_chunks(path, tokenizer, 100)
    assert [(c.chunk_id, c.doc_id, c.title, c.text) for c in chunks] == [
        ("z9", "z9", "Pumps", PROSE), ("a1", "a1", "", ""), ("7", "7", "Oil", "Change it."),
    ]  # fmt: skip
    assert chunks[2].n_tokens == len(["Oil", "Change", "it", "."]) + 2
    report = preflight.preflight_report(path)
    assert "passages: 2" in report and "empty: 1" in report and "size" not in report


def test_a_stray_byte_does_not_lose_a_document_and_linked_folders_are_entered(tmp_path):
    text = "Die Prüfung der Türen läuft täglich, auch für Gäste. Größe und Höhe stehen in der Übersicht. " * 3
    folder, other = tmp_path / "corpus", tmp_path / "other"
    (folder / ".git").mkdir(parents=True)
    other.mkdir()
    (folder / "a.txt").write_bytes(text.encode() + b" 2019\x962021.")
    (folder / ".git" / "index.txt").write_text(text)
    (other / "b.txt").write_text(text)
    (other / "round").symlink_to(folder)
    (folder / "linked").symlink_to(other)
    for name in (b"Pr\xfcfung.txt", b"Pr\xf6fung.txt"):  # not UTF-8, and two files all the same
        (folder / os.fsdecode(name)).write_text(text)
    found, skipped = documents.load_documents(folder)
    assert [d.doc_id for d in found] == [
        "Pr\\xf6fung.txt",
        "Pr\\xfcfung.txt",
        "a.txt",
        "linked/b.txt",
    ] and not skipped
    assert "Prüfung der Türen" in found[1].text
    before = digest(folder)
    (folder / ".git" / "index.txt").write_text("something else")
    assert digest(folder) == before, "hidden files are not read"


def test_a_paragraph_above_a_rule_stays_text(tmp_path):
    paragraph = "The crew checks the pump and the valve " * 8
    (tmp_path / "a.md").write_text(f"# Pumps\n\n{paragraph}\n---\n\nShort head\n===\n\n{PROSE}")
    found = corpus.chunk(documents.load_documents(tmp_path)[0], tokenizer, 200)
    assert sum(c.text.count("checks the pump") for c in found) == 8
    assert any(c.title.endswith("Short head") for c in found)


def test_a_long_title_with_a_hash_stays_the_title(tmp_path):
    title = f"How the crew checks every pump {'and each of its valves ' * 4}in winter"
    (tmp_path / "a.md").write_text(f"# {title}\n\n{PROSE}")
    (document,), _ = documents.load_documents(tmp_path)
    assert len(title.split()) > documents.LONGEST_HEADING and document.title == title
    assert all(title not in c.text for c in corpus.chunk([document], tokenizer, 200))


@pytest.mark.parametrize("link_first", [True, False])
def test_a_linked_folder_gives_the_same_ids_in_whatever_order_it_was_made(tmp_path, link_first):
    (tmp_path / "corpus").mkdir()
    link, real = tmp_path / "corpus" / "a_link", tmp_path / "corpus" / "guide"
    if link_first:
        link.symlink_to(real)
    real.mkdir()
    (real / "x.txt").write_text(PROSE)
    if not link_first:
        link.symlink_to(real)
    found, _ = documents.load_documents(tmp_path / "corpus")
    assert [d.doc_id for d in found] == ["guide/x.txt"]


def test_half_a_character_in_a_corpus_does_not_stop_the_course(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "up \\ud83d and \\ud83d\\ude00 too"}')
    (chunk,) = corpus.read_chunks(tmp_path / "corpus.jsonl", tokenizer, 100)
    assert chunk.text == "up \ufffd and 😀 too"


def test_rows_of_a_beir_corpus_belong_to_the_documents_that_they_name(tmp_path):
    rows = [{"_id": "manual.md#0"}, {"_id": "manual.md#1"}, {"_id": "C#"}, {"_id": "#7"}]
    rows += [{"_id": "u1", "doc_id": "log.txt"}, {"_id": "u2", "metadata": {"doc_id": "log.txt"}}]
    rows += [{"_id": "u3", "doc_id": 0}]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(f"{json.dumps(row | {'title': '', 'text': 'Change it.'})}\n" for row in rows))
    found = [chunk.doc_id for chunk in corpus.read_chunks(path, tokenizer, 100)]
    assert found == ["manual.md", "manual.md", "C#", "#7", "log.txt", "log.txt", "0"]


def test_another_file_is_no_corpus(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(CourseError, match=r"neither a folder nor a \.jsonl file"):
        corpus.read_chunks(tmp_path / "a.csv", tokenizer, 100)


def test_the_preflight_warns_of_what_spoils_a_small_corpus(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.md").write_text(f"# Pump care\n\n{PROSE[:300]}")
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    report = preflight.preflight_report(tmp_path)
    assert "documents: 3" in report and "near copies: 2" in report and "below basic" in report
    warnings = "\n".join(line for line in report.split("\n") if line.startswith("!"))
    for told in ("skipped x.png", "only 3 documents", "fewer than 100 words", "2 documents are near copies"):
        assert told in warnings


def test_the_preflight_of_a_good_corpus_warns_of_nothing():
    words = [f"word{i}" for i in range(5000)]
    documents = [document(" ".join(words[i * 150 : i * 150 + 150]), f"{i}.md") for i in range(25)]
    figures, warnings = preflight.preflight(documents, [])
    assert warnings == [] and figures["documents"] == 25 and figures["shortest"] == 150


@pytest.mark.parametrize(("n", "size"), [(49, "below basic"), (50, "basic"), (500, "good"), (1000, "best")])
def test_the_preflight_advises_on_the_number_of_documents(n, size):
    words = [" ".join(f"w{i}x{j}" for j in range(60)) for i in range(n)]
    figures, _ = preflight.preflight([document(text, f"{i}.md") for i, text in enumerate(words)])
    assert figures["size"].split(" (")[0] == size and figures["near copies"] == 0


GERMAN = "Die Pumpe muss angehalten werden, bevor das Ventil geöffnet wird, sonst steigt der Druck. "
DANISH = "Pumpen skal standses, før ventilen åbnes, ellers stiger trykket i ledningen hurtigt, siger vagten. "


def test_the_preflight_names_languages_and_warns_of_a_mix():
    texts = [*[PROSE] * 8, GERMAN * 3, DANISH * 3, "| 4 | 7 | 12 |" * 9]
    figures, warnings = preflight.preflight([document(text, f"{i}.md") for i, text in enumerate(texts)])
    assert figures["languages"] == "en 8, de 1, da 1, und 1"
    assert any("2 documents are in another language than 'en'" in told for told in warnings)
    _, warnings = preflight.preflight([document(GERMAN * 3, "a.md")])
    assert any("most documents are in 'de'" in told for told in warnings)


def test_the_preflight_of_passages_judges_neither_their_number_nor_their_length():
    chunks = cut(PROSE, tokens=60)
    figures, warnings = preflight.preflight(chunks, unit="passages")
    assert figures["passages"] == len(chunks) and "size" not in figures and warnings == []
