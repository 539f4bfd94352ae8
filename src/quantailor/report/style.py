"""The look of the pages: colours for a light and a dark theme, and the few lines of script that sort tables."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from quantailor.report.svg import STEPS

Color = tuple[int, int, int]

LIGHT_RAMP = ("#eef2d8", "#b5dfbf", "#62bdb5", "#2c8db0", "#22559a", "#18265f")
DARK_RAMP = ("#1d2c3a", "#1c4f66", "#1e7f84", "#43b597", "#a3dd97", "#f6f7b8")
"""From low to high; lightness rises or falls all the way, so that the order survives grey print and colour blindness."""

BIT_RAMP = ((1.0, "#f26d4f"), (2.5, "#f9914a"), (3.4, "#fbc13a"), (4.3, "#a8dd3f"), (4.9, "#62dcc4"), (5.6, "#45b8f5"), (6.6, "#8f9bfa"))
BIT_RAMP_END = ((8.5, "#b79cf7"), (16.0, "#cfd3da"))
"""Bits per weight to a colour, warm for few and cool for many; black text is readable on all of them."""


def bit_color(bits_per_weight: float) -> str:
    """The colour of a bit width, as #rrggbb."""
    stops = (*BIT_RAMP, *BIT_RAMP_END)
    for (low, before), (high, after) in pairwise(stops):
        if bits_per_weight <= high:
            return _blend(before, after, max(0.0, (bits_per_weight - low) / (high - low)))
    return stops[-1][1]


def ramp_color(step: int, stops: tuple[str, ...]) -> str:
    """The colour of one shade of a ramp, as #rrggbb."""
    at = step / (STEPS - 1) * (len(stops) - 1)
    index = min(int(at), len(stops) - 2)
    return _blend(stops[index], stops[index + 1], at - index)


def text_color(background: str) -> str:
    """Black or white, whichever has the greater contrast."""
    return "#000" if contrast(background, "#000000") >= contrast(background, "#ffffff") else "#fff"


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours, 1 to 21."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@cache
def stylesheet() -> str:
    """The whole style sheet of a page."""
    dark = f":root{{{_DARK}}}{_shades(DARK_RAMP)}"
    return f":root{{{_LIGHT}}}{_shades(LIGHT_RAMP)}{_RULES}@media(prefers-color-scheme:dark){{{dark}}}"


def _shades(stops: tuple[str, ...]) -> str:
    colors = [ramp_color(step, stops) for step in range(STEPS)]
    return "".join(f".r{step}{{fill:{color}}}.t{step}{{--t:{text_color(color)}}}" for step, color in enumerate(colors))


def _rgb(color: str) -> Color:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _blend(one: str, other: str, share: float) -> str:
    mixed = (round(a + (b - a) * share) for a, b in zip(_rgb(one), _rgb(other), strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _luminance(color: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (channel / 255 for channel in _rgb(color))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


_LIGHT = """color-scheme:light dark;--page:#f4f6f8;--card:#fff;--ink:#161b22;--quiet:#545d68;--line:#d9dfe5;--strong:#98a2ad;
--accent:#0b6e66;--warm:#b23c1e;--good:#1a6f37;--bad:#ab2a24;--thin:#5f7f9d;--wash:#e9eef2"""
_DARK = """--page:#0e1116;--card:#161b22;--ink:#e6edf3;--quiet:#9da7b3;--line:#2b323b;--strong:#5c6773;
--accent:#6fe3d2;--warm:#ffa17d;--good:#7ee2a0;--bad:#ff9b94;--thin:#7f9fbd;--wash:#1f262f"""

_RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
font-variant-numeric:tabular-nums;overflow-wrap:break-word}
.page{max-width:1368px;margin:0 auto;padding:28px 24px 48px}
h1{font-size:30px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:20px;line-height:1.3;margin:0 0 6px}
h3{font-size:15px;line-height:1.4;margin:22px 0 6px;overflow-wrap:anywhere}
p{margin:0 0 10px;max-width:88ch}
a{color:var(--accent)}
code,.mono{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.92em}
.sub,.basis,figcaption,caption,footer{color:var(--quiet)}
.sub{max-width:none;overflow-wrap:anywhere}
.basis{font-size:13px;margin:12px 0 0;max-width:130ch}
nav{margin:14px 0 20px;font-size:14px}
nav a{margin-right:18px;white-space:nowrap}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:22px 24px;margin:0 0 18px;
content-visibility:auto;contain-intrinsic-size:auto 900px}
section>:last-child{margin-bottom:0}
.todo{border-left:3px solid var(--strong);padding-left:12px}
.facts{display:flex;flex-wrap:wrap;gap:14px 44px;margin:4px 0 18px;padding:0}
.facts div{min-width:90px}
.facts dt{color:var(--quiet);font-size:13px}
.facts dd{margin:0;font-size:22px;font-weight:600;line-height:1.3;overflow-wrap:anywhere}
svg .halo{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
.words dt{font-weight:600;margin-top:10px}
.words dd{margin:0;color:var(--quiet)}
ol.top{margin:0 0 12px;padding-left:22px;max-width:88ch}
figure{margin:14px 0 0}
figcaption{font-size:13px;margin-bottom:6px}
svg{display:block;width:100%;height:auto;font-size:12px;overflow:visible}
svg text{fill:var(--ink)}
svg .tick,svg .axis{fill:var(--quiet)}
svg .tick{font-size:11px}
svg .row{font-size:12px}
svg .row.mono{font-size:11px}
svg .v{font-size:10.5px;fill:var(--t,var(--quiet));pointer-events:none}
svg .m{fill:var(--t,var(--quiet));pointer-events:none}
svg .x{stroke:var(--t,var(--quiet));stroke-width:1.6;fill:none;pointer-events:none}
.ink{--t:var(--ink)}
svg .c{stroke:var(--card);stroke-width:0}
svg rect:hover,svg .c:hover{stroke:var(--ink);stroke-width:1.5}
svg .none{fill:none;stroke:var(--strong);stroke-dasharray:3 2;pointer-events:all}
.grid{stroke:var(--line)}
.grid.strong{stroke:var(--strong)}
.thin{fill:none;stroke:var(--thin);stroke-width:1;stroke-opacity:.8}
.many{stroke-opacity:.28}
.thin:hover{stroke:var(--warm);stroke-opacity:1;stroke-width:2}
.bounded{stroke-dasharray:3 3}
.median{fill:none;stroke:var(--accent);stroke-width:2.6}
.median.under{stroke:var(--card);stroke-width:5.4}
.dot{fill:var(--accent);stroke:var(--card);stroke-width:1}
.floor{stroke:var(--warm);stroke-dasharray:2 3}
.identity{stroke:var(--ink);stroke-width:1.2}
.band{fill:var(--quiet);opacity:.14}
.bar{stroke:var(--strong);stroke-width:1.4}
.a{fill:var(--accent);stroke:var(--accent)}
.b{fill:var(--warm);stroke:var(--warm)}
.hollow{fill:var(--card);stroke-width:1.6}
.a.bar,.b.bar{stroke-width:1.6}
.link{stroke:var(--strong);stroke-width:3;stroke-opacity:.5}
.multiples{display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));gap:18px 24px;margin-top:14px}
@media(max-width:880px){.multiples,.pair,.side,.halves{grid-template-columns:minmax(0,1fr)!important}}
.multiples figure{margin:0}
.multiples figcaption b{color:var(--ink)}
.pair{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:28px}
.halves{display:grid;grid-template-columns:minmax(0,6fr) minmax(0,5fr);gap:20px 48px;align-items:start}
.halves>div>:last-child{margin-bottom:0}
.side{display:grid;grid-template-columns:minmax(0,620px) minmax(260px,1fr);gap:36px;align-items:start}
.legend{display:flex;flex-wrap:wrap;gap:8px 32px;align-items:center;margin:12px 0 0;font-size:13px}
.legend>svg{width:302px;flex:none}
.keys{list-style:none;display:flex;flex-wrap:wrap;gap:4px 24px;margin:0;padding:0;font-size:13px}
.keys li{display:flex;gap:7px;align-items:center}
.key{width:14px;flex:none}
.key.wide{width:30px}
.tall{overflow:auto;max-height:680px;border:1px solid var(--line);border-radius:8px}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
caption{text-align:left;font-size:13px;padding:0 0 8px}
.tall caption{padding:8px}
th,td{padding:5px 10px;text-align:left;border-bottom:1px solid var(--line);vertical-align:middle;font-weight:400}
.sortable th,.sortable td{padding:5px 8px}
thead th{font-weight:600;font-size:13px;vertical-align:bottom;background:var(--card);border-bottom:1px solid var(--strong)}
.tall thead th{position:sticky;top:0}
tbody tr:hover>*{background:var(--wash)}
td{white-space:nowrap}
tbody th{overflow-wrap:anywhere;min-width:12ch;max-width:46ch}
tbody th:has(.mono){min-width:25ch}
td.w{white-space:normal;min-width:calc(11ch + 20px);overflow-wrap:anywhere}
.line{display:block}
.n{text-align:right;white-space:nowrap}
thead .n{white-space:normal}
th button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer;text-align:inherit}
th button::after{content:"\\2195";color:var(--strong);margin-left:5px}
th[aria-sort=ascending] button::after{content:"\\2191";color:var(--accent)}
th[aria-sort=descending] button::after{content:"\\2193";color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.whisker{display:block;position:relative;width:112px;height:14px;margin:0 4px;
background:linear-gradient(var(--line),var(--line)) center/100% 1px no-repeat}
.whisker.against{background:linear-gradient(var(--strong),var(--strong)) calc(var(--o)*1%) 0/1px 100% no-repeat,
linear-gradient(var(--line),var(--line)) center/100% 1px no-repeat}
.whisker::before{content:"";position:absolute;top:4.5px;height:5px;left:calc(var(--a)*1%);width:calc((var(--b) - var(--a))*1%);
background:var(--accent);opacity:.45}
.whisker::after{content:"";position:absolute;top:4px;width:6px;height:6px;left:calc(var(--m)*1% - 3px);border-radius:50%;
background:var(--accent)}
.whisker.bound::after{border-radius:0;clip-path:polygon(100% 0,0 50%,100% 100%)}
.good{color:var(--good)}.bad{color:var(--bad)}
.ours>*,.sum>*{font-weight:600}
.mix{display:flex;height:26px;border-radius:6px;overflow:hidden;gap:1px;margin:4px 0 10px}
.mix span{color:#000;font-size:12px;line-height:26px;text-align:center;overflow:hidden;white-space:nowrap}
.swatch{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px;border:1px solid var(--strong);vertical-align:-1px}
details{margin-top:14px}
summary{cursor:pointer;color:var(--accent);font-size:14px}
details>.tall,details>.wide{margin-top:8px}
footer{font-size:13px;padding:6px 4px}
@media print{section{content-visibility:visible}.tall{max-height:none;overflow:visible}}
"""

SCRIPT = """
const collator = new Intl.Collator(undefined, {numeric: true});
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : head.classList.contains("n");
    const numeric = head.classList.contains("n");
    const compare = (a, b) => numeric
      ? (a === b ? 0 : a === "" ? 1 : b === "" ? -1 : (a - b) * (down ? -1 : 1))
      : collator.compare(a, b) * (down ? -1 : 1);
    const rows = [...body.rows].map(row => [key(row, column), row]).sort((a, b) => compare(a[0], b[0]));
    body.append(...rows.map(pair => pair[1]));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  }));
}
"""
