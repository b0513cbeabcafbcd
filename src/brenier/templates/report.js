"use strict";
(() => {
  const canvas = document.getElementById("paths");
  if (!canvas) return;
  const data = JSON.parse(document.getElementById("path-data").textContent);
  const slider = document.getElementById("time"), shown = document.getElementById("now");
  const arrows = document.getElementById("arrows");
  const pen = canvas.getContext("2d");
  const [left, right, low, high] = data.window;
  const walls = new Image();
  const at = ([x, y]) => [(x - left) / (right - left) * canvas.width, (high - y) / (high - low) * canvas.height];
  const color = (t) => {
    const place = t * (data.colors.length - 1), i = Math.min(Math.floor(place), data.colors.length - 2);
    const mix = data.colors[i].map((c, k) => Math.round(c + (place - i) * (data.colors[i + 1][k] - c)));
    return `rgb(${mix.join(",")})`;
  };
  const position = (i, t) => {
    const place = t * (data.paths.length - 1), k = Math.min(Math.floor(place), data.paths.length - 2), s = place - k;
    const a = data.paths[k][i], b = data.paths[k + 1][i];
    return [a[0] + s * (b[0] - a[0]), a[1] + s * (b[1] - a[1])];
  };
  const draw = () => {
    const t = Number(slider.value), size = canvas.width / 190;
    shown.textContent = `time ${t.toFixed(2)}`;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (walls.complete && walls.naturalWidth) pen.drawImage(walls, 0, 0, canvas.width, canvas.height);
    pen.strokeStyle = "#8e8e94";
    pen.lineWidth = canvas.width / 900;
    for (const point of data.target) {  // crosses: told apart by shape, not by colour alone
      const [x, y] = at(point);
      pen.beginPath();
      pen.moveTo(x - size, y); pen.lineTo(x + size, y);
      pen.moveTo(x, y - size); pen.lineTo(x, y + size);
      pen.stroke();
    }
    pen.fillStyle = color(t);
    pen.strokeStyle = color(t);
    for (let i = 0; i < data.paths[0].length; i++) {
      const [x, y] = at(position(i, t));
      if (arrows.checked && i % 3 === 0) {
        const [a, b] = at(position(i, 0));
        pen.globalAlpha = 0.35;
        pen.beginPath(); pen.moveTo(a, b);
        for (let s = 0.05; s < t; s += 0.05) pen.lineTo(...at(position(i, s)));
        pen.lineTo(x, y); pen.stroke();
        pen.globalAlpha = 1;
      }
      pen.beginPath(); pen.arc(x, y, size, 0, 2 * Math.PI); pen.fill();
    }
  };
  walls.onload = draw;
  if (data.walls) walls.src = data.walls;
  slider.addEventListener("input", draw);
  arrows.addEventListener("change", draw);
  draw();
})();
