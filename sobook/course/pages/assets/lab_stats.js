// What a difference shows: the paired comparisons, Holm's correction and verdicts of
// sobook/statistics.py, for the page. No DOM. Tested against Python.

const statistics = (() => {
  const RESAMPLES = 10000;
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  // Recall of two runs on the same queries, second minus first, paired by class: (T,) hits, hits
  // and queries of each class. The p value is that of a permutation test.
  function compareClasses(first, second, queries) {
    const change = Array.from(second, (value, c) => value - first[c]);
    const random = numerics.generator(7);
    const seen = Math.abs(sum(change)) - 1e-9;
    let extreme = 0;
    for (let r = 0; r < RESAMPLES; r++) {
      let total = 0;
      for (const value of change) total += random() < 0.5 ? value : -value;
      extreme += Math.abs(total) >= seen;
    }
    const [low, high] = numerics.classInterval(change, queries);
    const difference = sum(change) / sum(queries);
    const p = (extreme + 1) / (RESAMPLES + 1);
    return { difference, low, high, p, n: change.length, over: "classes" };
  }

  // A number of two methods over the same five seeds: t interval and paired t test. With four
  // degrees of freedom Student's distribution has a closed form, in u = t / √(4 + t²).
  function compareSeeds(first, second) {
    if (first.length !== 5) throw new Error("a comparison over seeds takes five of them.");
    const change = second.map((value, s) => value - first[s]);
    const difference = sum(change) / 5;
    const error = Math.sqrt(sum(change.map((value) => (value - difference) ** 2)) / 4 / 5);
    const u = Math.abs(difference) / Math.hypot(2 * error, difference);
    const p = error > 0 ? ((1 - u) ** 2 * (2 + u)) / 2 : NaN;
    const half = 2.7764451051977987 * error; // exceeded, on either side, with probability 0.05
    return { difference, low: difference - half, high: difference + half, p, n: 5, over: "seeds" };
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
