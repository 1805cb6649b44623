// Rows in blocks: the browser skips those that are out of sight, and what is in sight is all that costs.

const ROWS = 10; // in a block, up to twice as many: as the table is scrolled they come and go
const FIRST = 3; // blocks that are filled before it is known which are in sight
const AT_ONCE = 6; // rows that are filled or emptied with a frame
const NEAR = "600px"; // so far out of sight rows are filled already

/** The rows of a table, a tbody for some ten of them. */
export class Blocks {
  #table;
  #see;
  #blocks = []; // each with its element, and whether it is in sight
  #of = new WeakMap(); // by row: the block that it stands in
  #observer;
  #waiting = new Set(); // rows that are to be filled or emptied
  #frame = 0;

  /** `see` hears of each row that comes into sight, or leaves it. */
  constructor(table, see) {
    this.#table = table;
    this.#see = see;
    this.#observer = new IntersectionObserver((seen) => {
      for (const { target, isIntersecting } of seen) this.#show(this.#blocks.find(({ element }) => element === target), isIntersecting);
    }, { rootMargin: NEAR });
  }

  /** Put rows in this order, and no others; only what is out of place is moved. */
  place(rows) {
    const kept = new Set(rows), places = new Map();
    for (const block of this.#blocks) {
      for (const row of [...block.element.rows]) {
        if (kept.has(row)) places.set(row, places.size);
        else this.#take(row);
      }
    }
    const stay = staying(rows.map((row) => places.get(row) ?? -1));
    if (stay.size < rows.length / 2) return this.#deal(rows);
    rows.forEach((row, index) => {
      if (stay.has(index)) return;
      const before = rows[index - 1], block = before ? this.#of.get(before) : this.#blocks[0];
      this.#put(row, block, before ? before.nextSibling : block.element.firstChild);
    });
    const sizes = this.#blocks.map(({ element }) => element.childElementCount);
    if (sizes.some((size) => size > 2 * ROWS || !size)) return this.#deal(rows);
    return sizes.forEach((size, index) => this.#blocks[index].element.style.setProperty("--rows", size));
  }

  /** Ten rows for each block, in this order. */
  #deal(rows) {
    const wanted = Math.ceil(rows.length / ROWS);
    while (this.#blocks.length < wanted) this.#add();
    this.#blocks.slice(0, wanted).forEach((block, index) => {
      const mine = rows.slice(index * ROWS, (index + 1) * ROWS), here = [...block.element.rows];
      if (here.length === mine.length && here.every((row, place) => row === mine[place])) return;
      mine.forEach((row) => this.#put(row, block, null));
      block.element.style.setProperty("--rows", mine.length);
    });
    for (const { element } of this.#blocks.splice(wanted)) {
      this.#observer.unobserve(element);
      element.remove();
    }
  }

  #add() {
    const element = document.createElement("tbody");
    element.role = "rowgroup";
    this.#table.append(element);
    this.#blocks.push({ element, isSeen: this.#blocks.length < FIRST && scrollY < 100 });
    this.#observer.observe(element);
  }

  #put(row, block, next) {
    block.element.insertBefore(row, next);
    this.#of.set(row, block);
    this.#see(row, block.isSeen);
  }

  #take(row) {
    row.remove();
    this.#of.delete(row);
    this.#see(row, false);
  }

  /** A block has come into sight, or left it: its rows follow, a few with each frame. */
  #show(block, isSeen) {
    if (!block || block.isSeen === isSeen) return;
    block.isSeen = isSeen;
    for (const row of block.element.rows) this.#waiting.add(row);
    this.#frame ||= requestAnimationFrame(() => this.#follow());
  }

  #follow() {
    let left = AT_ONCE;
    for (const row of this.#waiting) {
      if (!left--) break;
      this.#waiting.delete(row);
      const block = this.#of.get(row);
      if (block) this.#see(row, block.isSeen);
    }
    this.#frame = this.#waiting.size ? requestAnimationFrame(() => this.#follow()) : 0;
  }
}

/** Which of these numbers can stay as they stand, the most of them in ascending order; the others are to be moved. */
function staying(numbers) {
  const tails = [], before = new Array(numbers.length).fill(-1), ends = [];
  numbers.forEach((number, index) => {
    if (number < 0) return;
    let low = 0, high = tails.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (tails[middle] < number) low = middle + 1;
      else high = middle;
    }
    tails[low] = number;
    ends[low] = index;
    before[index] = low ? ends[low - 1] : -1;
  });
  const kept = new Set();
  for (let index = ends[tails.length - 1] ?? -1; index >= 0; index = before[index]) kept.add(index);
  return kept;
}
