//! How many pods must be asked to know the load of all.

/// The number of pods to ask of `population`: all up to three, else so many that the mean is known with 95 %
/// confidence for a standard deviation and margin that Knative fixed; at most 16.
pub fn sample_size(population: usize) -> usize {
    let n = population as f64;
    if population <= 3 { population } else { (15.37 * n / (n + 14.37)).ceil() as usize }
}

/// Two sums over the `answered` pods of a sample, projected on all `population` pods. None when nobody answered.
pub fn project(sum: f64, answered: usize, population: usize) -> Option<f64> {
    (answered > 0).then(|| sum / answered as f64 * population as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let expected =
            [(0, 0), (1, 1), (3, 3), (4, 4), (10, 7), (15, 8), (100, 14), (1000, 16), (100_000, 16)];
        for (population, size) in expected {
            assert_eq!(sample_size(population), size, "{population}");
            assert!(sample_size(population) <= population);
        }
    }

    #[test]
    fn projection() {
        assert_eq!(project(30.0, 3, 10), Some(100.0));
        assert_eq!(project(0.0, 0, 10), None);
    }
}
