//! Who calls what, by callee: for questions about the callers of one function in hundreds of files.

use std::collections::HashMap;

use crate::{
    numbers::Callee,
    summary::{Link, Summary},
    value::Place,
};

/// Of one file.
#[derive(Debug, Default)]
pub(super) struct Callers {
    /// Indices of [`Summary::uses`].
    uses: HashMap<(Callee, Place), Vec<usize>>,
    /// Numbers of imports.
    imports: HashMap<String, Vec<u32>>,
    /// Nodes that call an import.
    of_import: HashMap<u32, Vec<u32>>,
    /// Nodes that call a node, or jump to it.
    of_node: HashMap<u32, Vec<u32>>,
}

fn all<K: std::hash::Hash + Eq, V>(map: &HashMap<K, Vec<V>>, key: K) -> &[V] {
    map.get(&key).map_or(&[], Vec::as_slice)
}

impl Callers {
    pub(super) fn new(summary: &Summary) -> Self {
        let mut callers = Self::default();
        for (index, call) in summary.uses.iter().enumerate() {
            callers.uses.entry((call.callee, call.place)).or_default().push(index);
        }
        for (import, number) in summary.imports.iter().zip(0..) {
            callers.imports.entry(import.name.clone()).or_default().push(number);
        }
        for (node, from) in summary.nodes.iter().zip(0..) {
            for link in &node.links {
                match *link {
                    Link::CallImport(import) => {
                        callers.of_import.entry(import).or_default().push(from);
                    }
                    Link::Call(to) | Link::Jump(to) => {
                        callers.of_node.entry(to).or_default().push(from);
                    }
                    _ => {}
                }
            }
        }
        callers
    }

    /// Indices of what is passed to a callee in a place, in order.
    pub(super) fn uses(&self, callee: Callee, place: Place) -> &[usize] {
        all(&self.uses, (callee, place))
    }

    /// The imports of a name.
    pub(super) fn imports(&self, name: &str) -> &[u32] {
        self.imports.get(name).map_or(&[], Vec::as_slice)
    }

    /// The nodes that call an import.
    pub(super) fn of_import(&self, import: u32) -> &[u32] {
        all(&self.of_import, import)
    }

    /// The nodes that call a node or jump to it.
    pub(super) fn of_node(&self, node: u32) -> &[u32] {
        all(&self.of_node, node)
    }
}
