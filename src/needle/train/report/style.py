"""The style sheet of reports: light and dark by the reader's preference, and fit to print."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #1a1f29; --soft: #5b6472; --line: #e3e6eb;
  --train: #2a6fdb; --test: #d9480f; --right: #2a6fdb; --wrong: #d9480f; --on-heat: #ffffff;
  --accent: #2a6fdb; --note: #fff7e6; --note-line: #f0c36d;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101318; --card: #181c23; --ink: #e7eaf0; --soft: #9aa4b2; --line: #2a303a;
    --train: #6ea8fe; --test: #ff922b; --right: #4f8ff0; --wrong: #f0723a; --on-heat: #0b0d11;
    --accent: #6ea8fe; --note: #2a2416; --note-line: #7a5c1e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1080px; margin: 0 auto; padding: 36px 20px 60px; }
header .kind { color: var(--accent); font-weight: 600; letter-spacing: .04em; margin: 0; }
h1 { font-size: 30px; line-height: 1.2; margin: 2px 0 4px; letter-spacing: -.015em; }
header .when { color: var(--soft); margin: 0 0 22px; }
h2 { font-size: 17px; margin: 0 0 4px; letter-spacing: -.005em; }
p.about { margin: 0 0 14px; color: var(--soft); font-size: 13.5px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 22px; margin: 0 0 18px; }
.pair { display: grid; gap: 18px; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); }
.pair { margin-bottom: 18px; }
.pair > * { min-width: 0; }
.pair > section, .pair > div > section:last-child { margin-bottom: 0; }
@media (max-width: 500px) { .pair { grid-template-columns: minmax(0, 1fr); } }
.tiles { display: grid; gap: 12px; margin: 0 0 18px; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 16px; }
.tiles dt { color: var(--soft); font-size: 13px; }
.tiles dd { margin: 2px 0 0; font-size: 23px; font-weight: 600; letter-spacing: -.02em;
  white-space: nowrap; }
.tiles div:first-child dd { color: var(--accent); }
.note { background: var(--note); border: 1px solid var(--note-line); border-radius: 12px;
  padding: 12px 18px; margin: 0 0 18px; }
.note p { margin: 0; }
.scroll { overflow-x: auto; }
.scroll.long { max-height: 620px; overflow-y: auto; }
.scroll.long thead th { position: sticky; top: 0; background: var(--card); }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
details { margin-top: 10px; }
summary { cursor: pointer; color: var(--soft); font-size: 13.5px; }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 4px; }

svg.chart { width: 100%; height: auto; display: block; overflow: visible; }
svg.chart text { font-size: 12px; fill: var(--soft); }
svg.chart .axis-title text { fill: var(--soft); font-style: italic; }
svg.chart .legend text { fill: var(--ink); }
svg.chart .grid line { stroke: var(--line); }
svg.chart .grid line.axis { stroke: var(--soft); stroke-opacity: .6; }
svg.chart .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
svg.chart .line.series-train, .dot.series-train { stroke: var(--train); }
svg.chart .line.series-test, .dot.series-test { stroke: var(--test); }
svg.chart .line.series-detail { stroke: var(--train); stroke-opacity: .3; stroke-width: 1.3; }
svg.chart .line.series-test { stroke-dasharray: 7 4; }
svg.chart .dot { fill: var(--card); stroke-width: 2; }
svg.chart .dot.series-test { fill: var(--test); }
svg.chart .hit { fill: transparent; }
svg.chart .point:hover .dot { stroke-width: 5; }
svg.chart text.end { font-weight: 600; }
svg.chart text.end.series-train { fill: var(--train); }
svg.chart text.end.series-test { fill: var(--test); }

table { border-collapse: collapse; font-size: 13.5px; }
table.confusion { border-collapse: separate; border-spacing: 2px; margin: 0 auto; }
table.confusion th { font-weight: 500; color: var(--soft); padding: 2px 8px; white-space: nowrap; }
table.confusion thead th { max-width: 90px; overflow: hidden; text-overflow: ellipsis; }
table.confusion th[scope=row], table.confusion .corner { text-align: right; }
table.confusion .side, table.confusion .corner { font-style: italic; }
table.confusion td { min-width: 46px; height: 36px; text-align: center; border-radius: 5px; }
table.confusion td.right {
  background: color-mix(in oklab, var(--right) var(--heat), var(--card)); }
table.confusion td.wrong {
  background: color-mix(in oklab, var(--wrong) var(--heat), var(--card)); }
table.confusion td.strong { color: var(--on-heat); font-weight: 600; }
table.confusion td.zero { color: var(--line); }
table.confusion .total { color: var(--soft); padding: 0 6px; font-weight: 400; }
table.rows { width: 100%; }
table.rows th, table.rows td { text-align: left; padding: 6px 10px; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
table.rows th { color: var(--soft); font-weight: 500; white-space: nowrap; }
table.rows tbody tr:last-child > * { border-bottom: 0; }
table.rows tfoot > tr > * { border-top: 2px solid var(--line); border-bottom: 0; font-weight: 600;
  color: var(--ink); }
table.rows .number { text-align: right; white-space: nowrap; }
table.rows code { font-size: 13px; }
td.share { width: 22%; min-width: 90px; }
.bar { display: block; height: 7px; border-radius: 4px; background: var(--line); overflow: hidden; }
.bar span { display: block; height: 100%; border-radius: 4px; background: var(--accent);
  opacity: .8; }
table.facts th { width: 34%; }
table.facts td { overflow-wrap: anywhere; }

.mistakes { display: grid; gap: 14px; padding: 0; margin: 0;
  grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); }
.mistakes figure { margin: 0; border: 1px solid var(--line); border-radius: 9px;
  overflow: hidden; }
.mistakes .frame { background: #000; aspect-ratio: 1; display: grid; place-items: center; }
.pixels { image-rendering: pixelated; }
.mistakes img { width: 100%; height: 100%; object-fit: contain; }
.mistakes figcaption { padding: 8px 11px 9px; font-size: 13px; line-height: 1.45; }
.mistakes .true { color: var(--right); font-weight: 600; }
.mistakes .predicted { color: var(--wrong); font-weight: 600; }
.mistakes .small { color: var(--soft); font-size: 12px; display: block; }
img.heat { width: 100%; max-width: 560px; aspect-ratio: 1; display: block; margin: 0 auto 14px;
  border-radius: 6px; }
code, pre { font-family: var(--mono); }
pre.sample { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: 13.5px;
  line-height: 1.5; }
pre.sample .prompt { color: var(--accent); font-weight: 600; }
footer { color: var(--soft); font-size: 13px; text-align: center; margin-top: 26px; }
@media print {
  body { background: none; } section, .tiles div { break-inside: avoid; }
  main { max-width: none; padding: 0; }
}
"""
