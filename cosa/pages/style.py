"""The looks of a report, on screens of any width and on paper."""

STYLE = """
:root { --ink: #1f2937; --pale: #6b7280; --line: #e5e7eb; --accent: #0b6fb8; --soft: #f3f6fa; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 0 0 6px; font-weight: 600; }
p { margin: 0 0 10px; max-width: 76ch; overflow-wrap: anywhere; }
a { color: var(--accent); }
.pale { color: var(--pale); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 14px 0 0; font-size: 14px; }
nav a { text-decoration: none; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 20px 22px; margin-top: 18px; }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.card.main { background: var(--soft); border-color: #bcd6ec; grid-column: span 2; }
.card b { display: block; font-size: 26px; line-height: 1.2; font-weight: 650; }
.card.main b { font-size: 40px; color: var(--accent); }
.card span { font-weight: 600; font-size: 14px; }
.card small { display: block; color: var(--pale); font-size: 13px; line-height: 1.4;
  margin-top: 4px; }
.grid { display: grid; gap: 22px 26px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.pictures { display: grid; gap: 18px 22px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 640px; }
.scroll + p, .scroll + .scroll { margin-top: 12px; }
figure svg text { font-family: inherit !important; }
figcaption { color: var(--pale); font-size: 13px; line-height: 1.45; margin-top: 4px;
  overflow-wrap: anywhere; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.panel img { width: 100%; }
.gallery { display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.gallery h3 { margin: 6px 0 0; overflow-wrap: anywhere; }
.gallery h3 a { color: inherit; text-decoration: none; }
.pair { display: flex; gap: 6px; align-items: flex-start; }
.pair a { flex: 0 1 auto; min-width: 0; }
.legend { list-style: none; margin: 4px 0 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: 2px 14px; font-size: 13px; }
.legend li { overflow-wrap: anywhere; min-width: 0; }
.legend i { display: inline-block; width: 16px; border-top: 3px solid var(--c); margin-right: 6px;
  vertical-align: middle; }
.legend i.dashed { border-top-style: dotted; }
.legend.keys { margin: 0 0 14px; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
th { color: var(--pale); font-weight: 600; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 110px;
  white-space: normal; }
table.words td, table.words th { text-align: left; overflow-wrap: anywhere; white-space: normal; }
table.words td:first-child { white-space: nowrap; }
.number { white-space: nowrap; }
.warning { border-left: 4px solid #e07b00; padding: 2px 0 2px 12px; margin: 10px 0; }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
.tag { display: inline-block; border-radius: 99px; padding: 0 9px; font-size: 12px;
  background: var(--soft); color: var(--accent); margin-right: 6px; font-weight: 600; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 5px;
  background: var(--c); vertical-align: -1px; }
footer { color: var(--pale); font-size: 13px; margin-top: 22px; }
@media (max-width: 640px) {
  main { padding: 16px 10px 40px; }
  section { padding: 14px 12px; border-radius: 8px; }
  h1 { font-size: 22px; }
  .cards { grid-template-columns: repeat(2, 1fr); }
  .card { padding: 10px; }
  .card.main b { font-size: 34px; }
  .panel .scroll img { width: 680px; max-width: none; }
  table.words td:first-child { white-space: normal; }
}
@media print {
  @page { margin: 14mm; }
  body { background: #fff; font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: 12px 0; }
  figure, .card, tr, .warning { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .grid, .pictures { grid-template-columns: 1fr 1fr; gap: 14px; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
