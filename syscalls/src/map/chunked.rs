//! A map of little code: sorted pieces in a sorted vector.

use alloc::vec::{self, Vec};
use core::{
    borrow::Borrow,
    fmt,
    iter::{Flatten, Map},
    mem,
    ops::{Bound, RangeBounds},
    slice,
};

/// The most entries that a chunk holds.
const CHUNK: usize = 64;

/// A map in the order of its keys, with the methods of `alloc`'s `BTreeMap` that are needed here. What
/// is looked up takes two binary searches; an insertion moves half a chunk on average, and the list of
/// chunks when one becomes two.
#[derive(Clone)]
pub struct ChunkedMap<K, V> {
    /// None is empty or has more than [`CHUNK`] entries; all are in the order of the keys.
    chunks: Vec<Vec<(K, V)>>,
    len: usize,
}

/// A chunk's number and a place in it, which may be behind its last entry.
type Position = (usize, usize);

impl<K, V> ChunkedMap<K, V> {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entries by key.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.into_iter()
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// The values by key.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The values by key.
    pub fn values_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut V> {
        self.chunks.iter_mut().flatten().map(|(_, value)| value)
    }

    /// The values by key.
    pub fn into_values(self) -> impl DoubleEndedIterator<Item = V> {
        self.into_iter().map(|(_, value)| value)
    }

    /// The entry with the least key.
    pub fn first_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }

    /// The entry with the greatest key.
    pub fn last_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next_back()
    }

    /// Takes the entry with the least key.
    pub fn pop_first(&mut self) -> Option<(K, V)> {
        (!self.is_empty()).then(|| self.remove_at((0, 0)))
    }

    /// Keeps the entries that are to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        for chunk in &mut self.chunks {
            chunk.retain_mut(|(key, value)| keep(key, value));
        }
        self.chunks.retain(|chunk| !chunk.is_empty());
        for chunk in (0..self.chunks.len()).rev() {
            self.join(chunk);
        }
        self.count();
    }

    fn count(&mut self) {
        self.len = self.chunks.iter().map(Vec::len).sum();
    }

    fn insert_at(&mut self, (mut chunk, mut index): Position, key: K, value: V) -> &mut V {
        let len_of = |this: &Self, chunk: usize| this.chunks.get(chunk).map_or(CHUNK, Vec::len);
        if len_of(self, chunk) == CHUNK {
            if index != 0 && index < CHUNK {
                let upper = self.chunks[chunk].split_off(CHUNK / 2);
                self.chunks.insert(chunk + 1, upper);
                if index > CHUNK / 2 {
                    (chunk, index) = (chunk + 1, index - CHUNK / 2);
                }
            } else {
                // Between two chunks: chunks are full where keys come in order.
                if index != 0 {
                    (chunk, index) = (chunk + 1, 0);
                }
                if len_of(self, chunk) == CHUNK {
                    self.chunks.insert(chunk, Vec::new());
                }
            }
        }
        self.len += 1;
        let chunk = &mut self.chunks[chunk];
        chunk.insert(index, (key, value));
        &mut chunk[index].1
    }

    fn remove_at(&mut self, (chunk, index): Position) -> (K, V) {
        self.len -= 1;
        let entry = self.chunks[chunk].remove(index);
        if self.chunks[chunk].is_empty() {
            self.chunks.remove(chunk);
        } else {
            self.join(chunk);
            if let Some(before) = chunk.checked_sub(1) {
                self.join(before);
            }
        }
        entry
    }

    /// Makes one of a chunk and the next where both are small.
    fn join(&mut self, chunk: usize) {
        if let Some([lower, upper]) = self.chunks.get_mut(chunk..chunk + 2)
            && lower.len() + upper.len() <= CHUNK / 2
        {
            lower.append(upper);
            self.chunks.remove(chunk + 1);
        }
    }
}

impl<K: Ord, V> ChunkedMap<K, V> {
    /// Where the key is, or would be.
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Result<Position, Position>
    where
        K: Borrow<Q>,
    {
        let begins_below = |chunk: &Vec<(K, V)>| chunk[0].0.borrow() <= key;
        let Some(chunk) = self.chunks.partition_point(begins_below).checked_sub(1) else {
            return Err((0, 0));
        };
        match self.chunks[chunk].binary_search_by(|(other, _)| other.borrow().cmp(key)) {
            Ok(index) => Ok((chunk, index)),
            Err(index) => Err((chunk, index)),
        }
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (chunk, index) = self.find(key).ok()?;
        Some(&self.chunks[chunk][index].1)
    }

    /// The value of a key.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (chunk, index) = self.find(key).ok()?;
        Some(&mut self.chunks[chunk][index].1)
    }

    /// Whether the key has a value.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).is_ok()
    }

    /// Gives a key a value; gives the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok((chunk, index)) => Some(mem::replace(&mut self.chunks[chunk][index].1, value)),
            Err(at) => {
                self.insert_at(at, key, value);
                None
            }
        }
    }

    /// Takes a key's value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.find(key).ok()?;
        Some(self.remove_at(at).1)
    }

    /// The place of a key.
    pub fn entry(&mut self, key: K) -> Entry<'_, K, V> {
        match self.find(&key) {
            Ok(at) => Entry::Occupied(OccupiedEntry { map: self, at }),
            Err(at) => Entry::Vacant(VacantEntry { map: self, key, at }),
        }
    }

    /// Takes the entries from `key` on.
    #[must_use]
    pub fn split_off<Q: Ord + ?Sized>(&mut self, key: &Q) -> Self
    where
        K: Borrow<Q>,
    {
        let (Ok((chunk, index)) | Err((chunk, index))) = self.find(key);
        let mut taken = Self::new();
        if chunk < self.chunks.len() {
            taken.chunks = self.chunks.split_off(chunk);
            if index > 0 {
                let upper = taken.chunks[0].split_off(index);
                self.chunks.push(mem::replace(&mut taken.chunks[0], upper));
                taken.chunks.retain(|chunk| !chunk.is_empty());
            }
        }
        self.count();
        taken.count();
        taken
    }

    /// Takes all entries of another map.
    pub fn append(&mut self, other: &mut Self) {
        let other = mem::take(other);
        match (self.last_key_value(), other.first_key_value()) {
            (Some((last, _)), Some((first, _))) if last < first => {
                let before = self.chunks.len() - 1;
                self.len += other.len;
                self.chunks.extend(other.chunks);
                self.join(before);
            }
            _ => self.extend(other),
        }
    }

    /// From where to where the keys of a range are.
    fn bounds<Q: Ord + ?Sized>(&self, range: &impl RangeBounds<Q>) -> (Position, Position)
    where
        K: Borrow<Q>,
    {
        let before = |key| match self.find(key) {
            Ok(at) | Err(at) => at,
        };
        let behind = |key| match self.find(key) {
            Ok((chunk, index)) => (chunk, index + 1),
            Err(at) => at,
        };
        let start = match range.start_bound() {
            Bound::Included(key) => before(key),
            Bound::Excluded(key) => behind(key),
            Bound::Unbounded => (0, 0),
        };
        let end = match range.end_bound() {
            Bound::Included(key) => behind(key),
            Bound::Excluded(key) => before(key),
            Bound::Unbounded => (self.chunks.len(), 0),
        };
        (start, end)
    }

    /// The entries with keys in a range.
    pub fn range<Q: Ord + ?Sized>(
        &self,
        range: impl RangeBounds<Q>,
    ) -> impl DoubleEndedIterator<Item = (&K, &V)>
    where
        K: Borrow<Q>,
    {
        let (start, end) = self.bounds(&range);
        let chunks = self.chunks.iter().enumerate().take(end.0 + 1).skip(start.0);
        chunks.flat_map(move |(number, chunk)| {
            let (from, to) = part(chunk.len(), number, start, end);
            chunk[from..to].iter().map(|(key, value)| (key, value))
        })
    }

    /// The entries with keys in a range.
    pub fn range_mut<Q: Ord + ?Sized>(
        &mut self,
        range: impl RangeBounds<Q>,
    ) -> impl DoubleEndedIterator<Item = (&K, &mut V)>
    where
        K: Borrow<Q>,
    {
        let (start, end) = self.bounds(&range);
        let chunks = self.chunks.iter_mut().enumerate().take(end.0 + 1).skip(start.0);
        chunks.flat_map(move |(number, chunk)| {
            let (from, to) = part(chunk.len(), number, start, end);
            chunk[from..to].iter_mut().map(|(key, value)| (&*key, value))
        })
    }
}

/// What of a chunk of `len` entries lies between two positions.
fn part(len: usize, number: usize, start: Position, end: Position) -> Position {
    let to = if number == end.0 { end.1 } else { len };
    let from = if number == start.0 { start.1 } else { 0 };
    (from.min(to), to)
}

impl<K, V> Default for ChunkedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for ChunkedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K, V> IntoIterator for ChunkedMap<K, V> {
    type Item = (K, V);
    type IntoIter = Flatten<vec::IntoIter<Vec<(K, V)>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.chunks.into_iter().flatten()
    }
}

impl<'a, K, V> IntoIterator for &'a ChunkedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Map<Flatten<slice::Iter<'a, Vec<(K, V)>>>, fn(&(K, V)) -> (&K, &V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.chunks.iter().flatten().map(|(key, value)| (key, value))
    }
}

impl<K: Ord, V> Extend<(K, V)> for ChunkedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for ChunkedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        map.extend(entries);
        map
    }
}

/// The place of a key: [`ChunkedMap::entry`].
pub enum Entry<'a, K, V> {
    /// It has no value.
    Vacant(VacantEntry<'a, K, V>),
    /// It has one.
    Occupied(OccupiedEntry<'a, K, V>),
}

/// See [`Entry`].
pub struct VacantEntry<'a, K, V> {
    map: &'a mut ChunkedMap<K, V>,
    key: K,
    at: Position,
}

/// See [`Entry`].
pub struct OccupiedEntry<'a, K, V> {
    map: &'a mut ChunkedMap<K, V>,
    at: Position,
}

impl<'a, K, V> Entry<'a, K, V> {
    /// The value; if there is none, this one.
    pub fn or_insert(self, value: V) -> &'a mut V {
        self.or_insert_with(|| value)
    }

    /// The value; if there is none, the one that is made.
    pub fn or_insert_with(self, make: impl FnOnce() -> V) -> &'a mut V {
        match self {
            Self::Vacant(entry) => entry.insert(make()),
            Self::Occupied(OccupiedEntry { map, at: (chunk, index) }) => {
                &mut map.chunks[chunk][index].1
            }
        }
    }

    /// The value; if there is none, the type's default.
    pub fn or_default(self) -> &'a mut V
    where
        V: Default,
    {
        self.or_insert_with(V::default)
    }
}

impl<'a, K, V> VacantEntry<'a, K, V> {
    /// Gives the key a value.
    pub fn insert(self, value: V) -> &'a mut V {
        self.map.insert_at(self.at, self.key, value)
    }
}

impl<K, V> OccupiedEntry<'_, K, V> {
    /// The value.
    #[must_use]
    pub fn get(&self) -> &V {
        &self.map.chunks[self.at.0][self.at.1].1
    }

    /// Gives the key another value; gives the former one.
    pub fn insert(&mut self, value: V) -> V {
        mem::replace(&mut self.map.chunks[self.at.0][self.at.1].1, value)
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;
    use core::ops::Range;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, u32),
        /// As the pages of a file that is written.
        InsertAll(Range<u16>),
        OrInsert(u16, u32),
        Remove(u16),
        RemoveAll(Range<u16>),
        PopFirst,
        /// As a file's pages are cut out.
        Cut(Range<u16>),
        Append(Vec<u16>),
        Retain(u32),
        Change(Range<u16>),
    }

    fn key() -> impl Strategy<Value = u16> {
        0..1000u16
    }

    fn range() -> impl Strategy<Value = Range<u16>> {
        (key(), 0..300u16).prop_map(|(start, len)| start..start + len)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (key(), any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            4 => range().prop_map(Step::InsertAll),
            2 => (key(), any::<u32>()).prop_map(|(key, value)| Step::OrInsert(key, value)),
            4 => key().prop_map(Step::Remove),
            2 => range().prop_map(Step::RemoveAll),
            1 => Just(Step::PopFirst),
            1 => range().prop_map(Step::Cut),
            1 => prop::collection::vec(key(), 0..50).prop_map(Step::Append),
            1 => (2..9u32).prop_map(Step::Retain),
            1 => range().prop_map(Step::Change),
        ]
    }

    fn check(map: &ChunkedMap<u16, u32>, model: &BTreeMap<u16, u32>) {
        assert!(map.iter().eq(model), "{map:?} is not {model:?}");
        assert!(map.iter().rev().eq(model.iter().rev()));
        assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
        assert!(map.chunks.iter().all(|chunk| (1..=CHUNK).contains(&chunk.len())));
        // No more than one chunk for an eighth of its room.
        assert!(map.chunks.len() <= map.len().div_ceil(CHUNK / 8) + 1, "{map:?}");
    }

    proptest! {
        #[test]
        fn does_what_a_b_tree_does(steps in prop::collection::vec(step(), 0..120), at in range()) {
            let (mut map, mut model) = (ChunkedMap::new(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert(key, value) => {
                        assert_eq!(map.insert(key, value), model.insert(key, value));
                    }
                    Step::InsertAll(range) => {
                        map.extend(range.clone().rev().map(|key| (key, 1)));
                        model.extend(range.map(|key| (key, 1)));
                    }
                    Step::OrInsert(key, value) => {
                        let found = *map.entry(key).or_insert(value);
                        assert_eq!(found, *model.entry(key).or_insert(value));
                    }
                    Step::Remove(key) => assert_eq!(map.remove(&key), model.remove(&key)),
                    Step::RemoveAll(range) => {
                        for key in range {
                            assert_eq!(map.remove(&key), model.remove(&key));
                        }
                    }
                    Step::PopFirst => assert_eq!(map.pop_first(), model.pop_first()),
                    Step::Cut(range) => {
                        let (mut cut, mut cut_model) =
                            (map.split_off(&range.start), model.split_off(&range.start));
                        map.append(&mut cut.split_off(&range.end));
                        model.append(&mut cut_model.split_off(&range.end));
                        check(&cut, &cut_model);
                    }
                    Step::Append(keys) => {
                        let other = || keys.iter().map(|key| (*key, 7));
                        map.append(&mut other().collect());
                        model.append(&mut other().collect());
                    }
                    Step::Retain(divisor) => {
                        map.retain(|_, value| *value % divisor != 0);
                        model.retain(|_, value| *value % divisor != 0);
                    }
                    Step::Change(range) => {
                        map.range_mut(range.clone()).for_each(|(_, value)| *value /= 2);
                        model.range_mut(range).for_each(|(_, value)| *value /= 2);
                    }
                }
                check(&map, &model);
            }
            let (start, end) = (at.start, at.end);
            assert!(map.range(start..end).eq(model.range(start..end)));
            assert!(map.range(start..).rev().eq(model.range(start..).rev()));
            assert!(map.range(..=end).eq(model.range(..=end)));
            assert_eq!(map.get(&start), model.get(&start));
            assert_eq!(map.get_mut(&end), model.get_mut(&end));
            assert_eq!(map.contains_key(&end), model.contains_key(&end));
            assert_eq!(map.first_key_value(), model.first_key_value());
            assert_eq!(map.last_key_value(), model.last_key_value());
            assert!(map.into_values().eq(model.into_values()));
        }
    }
}
