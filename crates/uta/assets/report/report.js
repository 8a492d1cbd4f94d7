// Reads values off a chart under the pointer. The page is whole without it.
for (const chart of document.querySelectorAll("g.chart")) {
  const figure = chart.closest("figure"), svg = chart.ownerSVGElement;
  const [left, top, right, bottom] = chart.dataset.frame.split(" ").map(Number);
  const [x0, x1, y0, y1] = chart.dataset.range.split(" ").map(Number);
  const percent = chart.dataset.percent === "1", log = chart.dataset.log === "1";
  const step = x => x0 + (x - left) / (right - left) * (x1 - x0);
  const value = y => {
    const share = (bottom - y) / (bottom - top);
    return log ? y0 * (y1 / y0) ** share : y0 + share * (y1 - y0);
  };
  const written = v => percent ? (100 * v).toPrecision(3) + " %" : Number(v.toPrecision(3)).toString();
  const curves = [...chart.querySelectorAll("path.line[data-label]")].map(path => ({
    path, points: path.getAttribute("d").split(/[ML]/).filter(Boolean).map(p => p.split(" ").map(Number)),
  })).filter(curve => curve.points.length);
  if (!curves.length) continue;

  const hair = document.createElementNS("http://www.w3.org/2000/svg", "line");
  hair.setAttribute("class", "hair"); hair.setAttribute("y1", top); hair.setAttribute("y2", bottom);
  const reading = document.createElement("div");
  reading.className = "reading";
  const leave = () => { hair.remove(); reading.remove(); };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    if (at.x < left || at.x > right) return leave();
    const nearest = curves.map(({path, points}) => ({path, point: points.reduce(
      (best, point) => Math.abs(point[0] - at.x) < Math.abs(best[0] - at.x) ? point : best)}));
    const x = nearest.reduce((best, {point}) =>
      Math.abs(point[0] - at.x) < Math.abs(best - at.x) ? point[0] : best, nearest[0].point[0]);
    hair.setAttribute("x1", x); hair.setAttribute("x2", x);
    chart.append(hair);
    reading.replaceChildren(`step ${Math.round(step(x))}`);
    for (const {path, point} of nearest) {
      if (Math.abs(point[0] - x) > 6) continue;
      const row = document.createElement("div"), mark = document.createElement("i"), number = document.createElement("b");
      mark.style.background = getComputedStyle(path).stroke;
      number.textContent = written(value(point[1]));
      row.append(mark, curves.length > 1 ? path.dataset.label + " " : "", number);
      reading.append(row);
    }
    figure.append(reading);
    const box = figure.getBoundingClientRect(), beside = event.clientX - box.left + 16;
    const fits = beside + reading.offsetWidth < box.width;
    reading.style.left = (fits ? beside : beside - 32 - reading.offsetWidth) + "px";
    reading.style.top = event.clientY - box.top - reading.offsetHeight / 2 + "px";
  });
}
