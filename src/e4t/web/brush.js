// Painting over the picture that #frame shows. The value is what was painted, as a PNG of the frame's size.
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
const width = element.querySelector("input[type=range]");
let last = null; // where the pointer was

function behind() { // the frame's picture, which shows the mask as it is
  const image = document.querySelector("#frame img");
  canvas.parentElement.style.backgroundImage = image ? `url("${image.src}")` : "none";
  canvas.parentElement.hidden = !image;
  image?.decode().then(() => {
    if (canvas.width === image.naturalWidth && canvas.height === image.naturalHeight) return;
    canvas.width = image.naturalWidth; // which clears it: this is another picture
    canvas.height = image.naturalHeight;
  }, () => {}); // another one is shown already
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
}

function paint(event) {
  const colour = element.querySelector("input[name=brush]:checked").value, next = place(event);
  pen.globalCompositeOperation = colour ? "source-over" : "destination-out";
  pen.strokeStyle = colour || "black";
  pen.lineCap = "round";
  pen.lineWidth = width.value * canvas.width / canvas.getBoundingClientRect().width;
  pen.beginPath();
  pen.moveTo(...(last ?? next));
  pen.lineTo(...next);
  pen.stroke();
  last = next;
}

function send(value) {
  props.value = value;
  trigger("input");
}

canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId);
  last = null;
  paint(event);
});
canvas.addEventListener("pointermove", event => canvas.hasPointerCapture(event.pointerId) && paint(event));
canvas.addEventListener("pointerup", () => send(canvas.toDataURL("image/png")));
element.querySelector("button").addEventListener("click", () => send(""));
watch("value", () => props.value || pen.clearRect(0, 0, canvas.width, canvas.height));
new MutationObserver(behind).observe(
  document.querySelector("#frame"), { subtree: true, childList: true, attributes: true, attributeFilter: ["src"] });
behind();
