// What the annotator has said of one item: a rank (1 is best, equal is a tie, null is none) for each place on the page,
// or "all bad". Knows nothing of the page.

export class Ranking {
  constructor(count, said) {
    this.count = count;
    this.clear();
    if (said && said.kind !== "skip") {
      this.ranks = said.ranks.slice();
      this.allBad = said.all_bad;
    }
  }

  clear() {
    this.ranks = new Array(this.count).fill(null);
    this.allBad = false;
    this.tying = false;
    this.latest = null;
  }

  get given() {
    return this.ranks.filter((rank) => rank !== null);
  }

  get complete() {
    return this.allBad || this.given.length >= 2;
  }

  get isTie() {
    return this.given.length === this.count && new Set(this.ranks).size === 1;
  }

  // A digit, or a click on a response. Of two, it is the better one; of more, it comes next in the ranking.
  choose(place) {
    this.allBad = false;
    if (this.count === 2) {
      const chosen = !this.isTie && this.ranks[place] === 1;
      this.ranks = chosen ? [null, null] : [2, 2];
      if (!chosen) this.ranks[place] = 1;
      return;
    }
    if (this.ranks[place] !== null) {
      this.ranks[place] = null;
      this.latest = null;
      this.tying = false;
      this.tidy();
      return;
    }
    this.tidy();
    const last = this.given.length ? Math.max(...this.given) : 0;
    const with_ = this.latest === null ? last : this.ranks[this.latest];
    this.ranks[place] = this.tying && with_ ? with_ : last + 1;
    this.latest = place;
    this.tying = false;
  }

  // All equal; while a ranking has been begun, the next one chosen shares the rank of the one before.
  tie() {
    this.allBad = false;
    if (this.count > 2 && this.given.length > 0 && this.given.length < this.count) {
      this.tying = !this.tying;
      return;
    }
    this.ranks = new Array(this.count).fill(this.isTie ? null : 1);
  }

  bad() {
    const bad = !this.allBad;
    this.clear();
    this.allBad = bad;
  }

  // To a rank of 1 to count, or null; the page's own move, by drag or arrow.
  move(place, rank) {
    this.allBad = false;
    this.tying = false;
    this.ranks[place] = rank;
    this.latest = rank === null ? null : place;
  }

  // 1, 2, 3 ... without gaps.
  tidy() {
    const order = [...new Set(this.given)].sort((a, b) => a - b);
    this.ranks = this.ranks.map((rank) => (rank === null ? null : order.indexOf(rank) + 1));
  }

  get words() {
    if (this.allBad) return this.count === 2 ? "Both are bad" : "All are bad";
    if (!this.given.length) return "";
    if (this.isTie) return "A tie";
    if (this.count === 2) return `Response ${this.ranks.indexOf(1) + 1} is better`;
    const tiers = [...new Set(this.given)].sort((a, b) => a - b);
    const named = tiers.map((tier) => this.ranks.flatMap((rank, place) => (rank === tier ? [place + 1] : [])).join(" = "));
    const left = this.ranks.flatMap((rank, place) => (rank === null ? [place + 1] : []));
    return named.join(" > ") + (left.length ? `; not ranked: ${left.join(", ")}` : "");
  }
}
