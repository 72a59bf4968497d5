"""The report's style sheet: sober, readable on a phone, printable."""

CSS = """
:root { color-scheme: light; --ink: #1f2933; --soft: #52606d; --line: #e4e7eb; --blue: #0072b2; }
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.headline { font-size: 1.15rem; font-weight: 600; margin: .25rem 0 1.25rem; }
.headline, .facts dd, figure svg text, table { font-variant-numeric: tabular-nums; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; margin: 0; }
.facts div { border-left: 3px solid var(--line); padding-left: .75rem; min-width: 0; }
.facts div:first-child { border-color: var(--blue); }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd {
  margin: 0; font-size: 1.3rem; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere;
}
.facts small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
.pair { display: flex; flex-wrap: wrap; gap: 1.5rem 2rem; align-items: flex-start; }
.pair figure { flex: 1 1 22rem; max-width: 34rem; }
.pair .scroll { flex: 1 1 max-content; min-width: 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.5rem 1.75rem; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1.25rem; }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg text { font-family: inherit !important; }
video, .videos img { display: block; width: 100%; border-radius: 4px; background: #f5f7fa; }
.failure video, .failure img { outline: 2px solid #d55e00; }
.success video, .success img { outline: 2px solid #009e73; }
figcaption { margin-top: .35rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { caption-side: bottom; text-align: left; padding-top: .5rem; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 400; }
tbody th small {
  display: block; color: var(--soft); line-height: 1.3;
  max-width: 17rem; overflow: hidden; text-overflow: ellipsis;
}
tfoot th, tfoot td { font-weight: 600; border-top: 2px solid var(--ink); border-bottom: 0; }
.plain td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.plain th { text-align: left; vertical-align: top; width: 12rem; color: var(--soft); font-weight: 400; }
pre {
  margin: .5rem 0 1rem; padding: .8rem 1rem; background: #f5f7fa; border-radius: 4px; overflow-x: auto;
  font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--blue); }
.key { display: inline-block; width: 1.4rem; height: 3px; background: #d55e00; vertical-align: middle; }
@media (max-width: 52rem) {
  body { padding: 1.25rem 1rem 3rem; }
  tbody th small { max-width: 10rem; }
  th, td { padding: .3rem .35rem; }
  .videos { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .75rem; }
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .plain th { width: 8rem; }
}
@media print { body { font-size: 11px; } figure, tr { break-inside: avoid; } }
"""
