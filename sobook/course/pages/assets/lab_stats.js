// What a difference shows: the paired comparisons, Holm's correction and verdicts of
// sobook/statistics.py, for the page. No DOM. Tested against Python.

const statistics = (() => {
  const RESAMPLES = 10000;
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  // Recall of two runs on the same queries, second minus first, paired by class: (T,) hits, hits
  // and queries of each class. The p value is that of a permutation test.
  function compareClasses(first, second, queries) {
    const change = Array.from(second, (value, c) => value - first[c]),
      random = numerics.generator(7);
    const seen = Math.abs(sum(change)) - 1e-9;
    let extreme = 0;
    for (let r = 0; r < RESAMPLES; r++) {
      let total = 0;
      for (const value of change) total += random() < 0.5 ? value : -value;
      extreme += Math.abs(total) >= seen;
    }
    const [low, high] = numerics.classInterval(change, queries);
    const difference = sum(change) / sum(queries),
      p = (extreme + 1) / (RESAMPLES + 1);
    return { difference, low, high, p, n: change.length, over: "classes" };
  }

  // A number of two methods over the same seeds: t interval and paired t test.
  function compareSeeds(first, second) {
    const change = second.map((value, s) => value - first[s]),
      n = change.length,
      df = n - 1;
    const difference = sum(change) / n;
    const error = Math.sqrt(sum(change.map((value) => (value - difference) ** 2)) / df / n);
    const half = tQuantile(df) * error,
      p = error > 0 ? twoSided(difference / error, df) : NaN;
    return { difference, low: difference - half, high: difference + half, p, n, over: "seeds" };
  }

  const twoSided = (t, df) => incompleteBeta(df / (df + t * t), df / 2, 0.5);

  // The t that is exceeded, on either side, with probability 0.05.
  function tQuantile(df) {
    let low = 0,
      high = 1000;
    for (let k = 0; k < 80; k++) {
      const middle = (low + high) / 2;
      if (twoSided(middle, df) > 0.05) low = middle;
      else high = middle;
    }
    return low;
  }

  // Regularized, by its continued fraction (Lentz's method; Numerical Recipes, section 6.4).
  function incompleteBeta(x, a, b) {
    if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
    if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
    const front =
      Math.exp(
        a * Math.log(x) + b * Math.log(1 - x) + logGamma(a + b) - logGamma(a) - logGamma(b),
      ) / a;
    let c = 1,
      d = 1 / (1 - ((a + b) * x) / (a + 1)),
      h = d;
    for (let m = 1; m < 300; m++) {
      const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
      const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
      for (const term of [even, odd]) {
        d = 1 / (1 + term * d);
        c = 1 + term / c;
        h *= c * d;
      }
      if (Math.abs(c * d - 1) < 1e-12) break;
    }
    return front * h;
  }

  // Stirling's series, after shifting the argument above 10.
  function logGamma(x) {
    let shift = 0;
    for (; x < 10; x++) shift += Math.log(x);
    const series = 1 / (12 * x) - 1 / (360 * x ** 3) + 1 / (1260 * x ** 5);
    return (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI) + series - shift;
  }

  // p values of a family of comparisons, corrected by Holm's step-down method; NaN stays NaN.
  function holm(values) {
    const order = [...values.keys()].filter((k) => values[k] >= 0);
    order.sort((a, b) => values[a] - values[b]);
    const corrected = values.map(() => NaN);
    let most = 0;
    order.forEach((k, rank) => {
      most = Math.max(most, Math.min(1, (order.length - rank) * values[k]));
      corrected[k] = most;
    });
    return corrected;
  }

  // What a comparison shows of the second, given its corrected p value.
  function verdict({ difference }, corrected) {
    if (!(corrected <= 0.05)) return "no difference shown";
    return difference > 0 ? "higher" : "lower";
  }

  return { compareClasses, compareSeeds, holm, verdict };
})();
