"""Reports: a schema that is checked, pages that fetch nothing, figures in both formats."""

import json
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
from edge_shared import report
from edge_shared.errors import InputError
from PIL import Image


@pytest.fixture
def result():
    data = report.DataInfo(name="digits", fingerprint="ab" * 32, counts={"train": 1168, "test": 360})
    metrics = {"accuracy": np.float32(0.5), "latency_ms": 1.25, "nan": float("nan"), "confusion": np.eye(2, dtype=int)}
    return report.Result(
        command="depthprune prune --data digits", metrics=metrics, cost={"macs": 10}, seed=0, data=data, settings={"lr": 0.1}
    )


def test_a_result_is_written_and_read_back(tmp_path, result):
    (tmp_path / "model.onnx").write_text("x")
    path = report.write_result(tmp_path, result.model_copy(update={"artifacts": {"onnx": "model.onnx"}}))
    document = json.loads(path.read_text())
    assert document["metrics"] == {"accuracy": 0.5, "latency_ms": 1.25, "nan": None, "confusion": [[1, 0], [0, 1]]}
    assert document["schema_version"] == "edgewise-result-1"
    assert document["environment"]["versions"]["numpy"] == np.__version__
    assert document["created"].endswith("Z")
    assert document["data"]["synthetic"] is False
    assert report.read_result(tmp_path) == report.read_result(path)
    assert report.read_result(path).cost == {"macs": 10}
    with pytest.raises(InputError, match=r"gone\.bin"):
        report.write_result(tmp_path, result.model_copy(update={"artifacts": {"x": "gone.bin"}}))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"metrics": 3}, "metrics"),
        ({"schema_version": "2"}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"command": None}, "command"),
        ({"data": {"name": "x", "size": 3}}, r"data\.size"),
    ],
)
def test_a_result_of_another_schema_is_refused_by_field(tmp_path, result, change, match):
    path = report.write_result(tmp_path, result)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=match) as caught:
        report.read_result(path)
    assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        report.read_result(path)


class Links(HTMLParser):
    """Collects whatever a browser would fetch, and checks that tags close."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "br", "img", "input"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset") and not (value or "").startswith("#"):
                self.fetched.append(value)
        if tag in ("script", "iframe", "object", "link"):
            self.fetched.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_fetches_nothing_escapes_all_and_takes_its_colours_from_the_page(tmp_path, result):
    for name in ("one", "two"):
        with report.figure(tmp_path, name) as axes:
            axes.plot([1, 2, 3], [1, 4, 9], label="a < b")
            axes.set(title="Squares", xlabel="n", ylabel="n²")
            axes.legend()
    table = report.Table(
        ["Model", "Latency / ms", "Bytes"], [["<b>tiny</b>", 1.23456, 12345], ["none", None, True]], caption="Both `models`."
    )
    sections = [report.Section("A & B", "First `x < y`.\n\nSecond.", table), report.Section("Plots", figures=["one", "two"])]
    path = report.write_html(tmp_path, "Report <1>", sections, result)
    text = path.read_text()
    links = Links(text)
    assert links.fetched == []
    assert links.open == []
    assert "url(http" not in text
    assert "@import" not in text
    for expected in (
        "Report &lt;1&gt;",
        "A &amp; B",
        "<code>x &lt; y</code>",
        "&lt;b&gt;tiny&lt;/b&gt;",
        "<td>1.235</td>",
        "<td>12,345</td>",
        "<td>yes</td>",
    ):
        assert expected in text
    assert text.count("<svg") == 2
    assert report.INK not in text.split("</style>", 1)[1]
    assert "currentColor" in text
    assert "synthetic" not in text
    assert "1,168 train" in text


def test_synthetic_data_are_called_so(tmp_path, result):
    made_up = result.model_copy(update={"data": report.DataInfo(name="noise", synthetic=True), "notes": ["One board only."]})
    text = report.write_html(tmp_path, "x", [], made_up).read_text()
    assert "synthetic" in text
    assert "One board only." in text


def test_figures_come_as_png_and_svg_and_the_style_stays_inside(tmp_path):
    before = dict(mpl.rcParams)
    with report.figure(tmp_path, "grid", rows=1, columns=2, size=(6, 3)) as axes:
        for part in axes:
            part.bar(["a", "b"], [1, 2])
    assert dict(mpl.rcParams) == before
    with Image.open(tmp_path / "grid.png") as image:
        assert image.size == (900, 450)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    first = (tmp_path / "grid.svg").read_text()
    assert re.search(r"<text", first)  # words stay words: they can be searched and scale with the page
    with report.figure(tmp_path, "grid", rows=1, columns=2, size=(6, 3)) as axes:
        for part in axes:
            part.bar(["a", "b"], [1, 2])
    assert (tmp_path / "grid.svg").read_text() == first


def test_what_cannot_be_shown_is_one_line(tmp_path, result):
    with pytest.raises(InputError, match="cannot read figure"):
        report.write_html(tmp_path, "x", [report.Section("a", figures=["absent"])])
    (tmp_path / "evil.svg").write_text("<svg><script>alert(1)</script></svg>")
    with pytest.raises(InputError, match="no plot"):
        report.write_html(tmp_path, "x", [report.Section("a", figures=["evil"])])
    with pytest.raises(InputError, match="cannot write"):
        report.write_result("/proc/nowhere", result)
