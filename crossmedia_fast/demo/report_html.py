"""report.html from what report.json holds: one file, no script, nothing fetched."""

from __future__ import annotations

import base64
from html import escape
from typing import Any, Protocol

_STYLE = """
:root { color-scheme: light dark;
  --paper: #f5f6f8; --card: #ffffff; --ink: #1c2126; --soft: #5d6873; --line: #dde1e6;
  --good: #00704f; --bar: #0072b2; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12161a; --card: #1b2026; --ink: #dfe3e8; --soft: #98a3ae; --line: #343c44;
  --good: #4cc79b; --bar: #4ba3d8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem;
  margin: 1.6rem 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.55rem; font-weight: 650; line-height: 1.2; }
.tile span { color: var(--soft); font-size: .88rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1rem; }
.card { padding: 1.1rem; overflow-x: auto; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
figcaption { margin-top: .5rem; }
.digits img { width: 100%; max-width: 34rem; image-rendering: pixelated; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 500; font-size: .88rem; }
tr:last-child td { border-bottom: 0; }
.gain { color: var(--good); font-weight: 600; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, monospace; font-size: .9em; }
"""


class _Picture(Protocol):
    @property
    def light(self) -> bytes: ...
    @property
    def dark(self) -> bytes: ...


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _figure(picture: _Picture, text: str, caption: str, kind: str = "") -> str:
    image = f'<img src="{_uri(picture.light)}" alt="{escape(text)}">'
    if picture.dark != picture.light:
        dark = f'<source media="(prefers-color-scheme: dark)" srcset="{_uri(picture.dark)}">'
        image = f"<picture>{dark}{image}</picture>"
    caption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{image}{caption}</figure>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML: the caller escapes."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _card(content: str, title: str = "") -> str:
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="card">{heading}{content}</div>'


def _tile(value: str, label: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def format_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"


def format_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _plural(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _ratio(reference: float, fused: float) -> str:
    if not fused or not reference:
        return "-"
    ratio = reference / fused
    return f'<span class="gain">{ratio:.2f}×</span>' if ratio > 1.02 else f"{ratio:.2f}×"


def _comparison(content: dict[str, Any]) -> str:
    by_step: dict[str, dict[str, dict[str, Any]]] = {}
    for row in content["comparison"]:
        by_step.setdefault(row["step"], {})[row["variant"]] = row
    rows = []
    for step, variants in by_step.items():
        fused, reference = variants["fused"], variants["reference"]
        rows.append(
            [
                escape(step),
                f"{reference['median_ms']:.2f} ms",
                f"{fused['median_ms']:.2f} ms",
                _ratio(reference["median_ms"], fused["median_ms"]),
                format_bytes(reference["saved_bytes"]),
                format_bytes(fused["saved_bytes"]),
                _ratio(reference["saved_bytes"], fused["saved_bytes"]),
            ]
        )
    header = ["training step", "reference", "fused", "faster", "kept by the reference"]
    table = _table([*header, "kept by the fused", "less"], rows)
    text = (
        "The same training step of this run's networks, on the same batch, with the fused "
        "operations and with PyTorch's one by one; the variants ran in turn. Times are medians of "
        "a whole step: forward, backward and optimizer. Kept: bytes that autograd holds from "
        "forward for backward, parameters not counted."
    )
    missing = content["backends"].get("cpu", "available")
    note = ""
    if missing != "available" and content["run"]["device"].startswith("cpu"):
        note = (
            "<p><b>No compiled operations here</b>, so both columns ran the reference: "
            f"{escape(missing)}</p>"
        )
    return f"<h2>Fused beside reference</h2><p>{text}</p>{note}{_card(table)}"


def _verdicts(content: dict[str, Any], pictures: dict[str, Any]) -> str:
    classes = len(content["data"]["class_names"])
    sets = {"real test images": content["test_verdict"]}
    sets |= {f"{kind} GAN" if kind != "mlp" else "article's GAN (mlp)": gan["verdict"]
             for kind, gan in content["gans"].items()}  # fmt: skip
    rows = [
        [
            escape(name),
            f"{verdict['images']:,}",
            f"{100 * verdict['mean_confidence']:.1f} %",
            f"{100 * verdict['sure_share']:.1f} %",
            f"{verdict['entropy']:.3f}",
            f"{verdict['covered_classes']} of {classes}",
        ]
        for name, verdict in sets.items()
    ]
    header = [
        "images",
        "count",
        "mean confidence",
        "surer than 90 %",
        "evenness",
        "classes covered",
    ]
    text = (
        "The trained CNN looks at generated images as it does at real ones. Evenness is the "
        "entropy of the predicted classes, 1 where all are equally frequent; a class is covered "
        "where it has at least a fifth of an even share. High confidence says that an image looks "
        "like some class to this CNN, not that a person would agree: look at the pictures."
    )
    bars = _figure(pictures["predicted-classes"], "predicted classes", "")
    table = _card(_table(header, rows))
    return f"<h2>The CNN judges the GANs</h2><p>{text}</p>{table}<br>{_card(bars)}"


def _gans(content: dict[str, Any], pictures: dict[str, Any]) -> str:
    parts = []
    for kind, gan in content["gans"].items():
        title = {
            "mlp": "The article's GAN: fully connected, 128 and 128",
            "dcgan": "Convolutional GAN of fused layers",
        }[kind]
        seconds = sum(row["seconds"] for row in gan["history"])
        speed = gan["history"][-1]["images_per_second"] if gan["history"] else 0.0
        figures = [
            _figure(
                pictures[f"generated-{kind}"],
                f"100 images of the {kind} GAN",
                "The first 100 images of one seed, none picked.",
                "digits",
            ),
            _figure(
                pictures[f"generated-{kind}-by-class"],
                "generated images by predicted class",
                "Images drawn at random from those that the CNN sees as each class, a row a class.",
                "digits",
            ),
        ]
        loss = _figure(pictures[f"loss-gan-{kind}"], "losses", "")
        text = (
            f"{_plural(gan['epochs'], 'epoch')} in {format_duration(seconds)}, "
            f"{speed:,.0f} images a second in the last."
        )
        cards = "".join(_card(figure) for figure in figures) + _card(loss, "Losses")
        parts.append(f"<h2>{escape(title)}</h2><p>{text}</p><div class='cards'>{cards}</div>")
    return "".join(parts)


def _tiles(content: dict[str, Any]) -> str:
    data, run = content["data"], content["run"]
    dropped = sum(data["dropped"].values())
    tiles = [
        _tile(f"{100 * content['cnn']['test_accuracy']:.2f} %", "CNN accuracy on the test split"),
        _tile(f"{data['train']:,} + {data['test']:,}", "training and test images"),
        _tile(f"{dropped:,} of {data['found']:,}", "images dropped in cleaning"),
        _tile(format_duration(run["seconds"]), "this run, start to report"),
    ]
    if run["peak_rss_bytes"]:
        tiles.append(_tile(format_bytes(run["peak_rss_bytes"]), "most memory the process held"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _cnn(content: dict[str, Any], pictures: dict[str, Any]) -> str:
    cnn = content["cnn"]
    seconds = sum(row["seconds"] for row in cnn["history"])
    text = (
        "Two layers of convolution, ReLU and max pooling in one operation, then two fully "
        f"connected layers; {_plural(cnn['epochs'], 'epoch')} in {format_duration(seconds)}, with "
        "small random shifts and rotations of the training images."
    )
    cards = (
        _card(_figure(pictures["confusion-matrix"], "confusion matrix", ""), "Confusion matrix")
        + _card(
            _figure(pictures["loss-cnn"], "training loss", "")
            + _figure(pictures["accuracy-cnn"], "test accuracy", ""),
            "Training",
        )
    )  # fmt: skip
    return f"<h2>The CNN</h2><p>{text}</p><div class='cards'>{cards}</div>"


def _details(content: dict[str, Any]) -> str:
    run, data = content["run"], content["data"]
    dropped = ", ".join(f"{reason}: {count}" for reason, count in data["dropped"].items())
    rows = [
        ["images", escape(data["source"])],
        ["dropped", escape(dropped)],
        [
            "device",
            escape(f"{run['device']}, threads: {run['threads']}, processes: {run['processes']}"),
        ],
        ["backend asked for", escape(run["backend"] or "none: the package chooses")],
        ["seed, batch size", f"{run['seed']}, {run['batch_size']}"],
        ["versions", escape(f"crossmedia_fast {run['version']}, torch {run['torch']}")],
    ]
    rows += [
        [f"backend {escape(name)}", escape(state)] for name, state in content["backends"].items()
    ]
    body = "".join(
        f'<tr><td>{name}</td><td style="text-align:left;white-space:normal">{value}</td></tr>'
        for name, value in rows
    )
    return f"<h2>The run</h2>{_card(f'<table>{body}</table>')}"


def render(content: dict[str, Any], pictures: dict[str, Any]) -> str:
    """The whole page. `content` is what report.json holds."""
    intro = (
        f"A CNN and {_plural(len(content['gans']), 'GAN')} trained with fused operations on "
        f"{escape(content['data']['source'])}; the CNN then judges what the GANs draw."
    )
    body = (
        f"<h1>Images generated and read</h1><p class='soft'>{intro}</p>"
        + _tiles(content)
        + _comparison(content)
        + _gans(content, pictures)
        + _verdicts(content, pictures)
        + _cnn(content, pictures)
        + _details(content)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>crossmedia_fast demo</title><style>{_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
