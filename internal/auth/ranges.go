package auth

import (
	"bytes"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/authpb"
)

// permissions is what a user may do by all its roles.
type permissions struct {
	revision    uint64 // of the state that they follow from
	read, write ranges
}

func (p *permissions) of(a Access) *ranges {
	if a == Write {
		return &p.write
	}
	return &p.read
}

// permissionCache holds the permissions that were made last.
type permissionCache struct{ last atomic.Pointer[permissions] }

// permissions returns what u may do by its roles in s. They are made once for each
// revision, when first asked for; a change of one role costs its other holders nothing
// until they come back.
func (s *State) permissions(u *user) *permissions {
	if p := u.perms.last.Load(); p != nil && p.revision == s.revision {
		return p
	}
	p := &permissions{revision: s.revision}
	for _, name := range u.Roles {
		r := s.roles[name]
		if r == nil {
			continue // only root need not exist
		}
		for _, perm := range r.KeyPermission {
			sp := spanOf(perm)
			if perm.PermType == authpb.Permission_READ || perm.PermType == authpb.Permission_READWRITE {
				p.read.all = append(p.read.all, sp)
			}
			if perm.PermType == authpb.Permission_WRITE || perm.PermType == authpb.Permission_READWRITE {
				p.write.all = append(p.write.all, sp)
			}
		}
	}
	p.read.merge()
	p.write.merge()
	u.perms.last.Store(p)
	return p
}

// span is the keys from begin, below end. An empty end, as in etcd's interval tree, is
// above all keys.
type span struct{ begin, end []byte }

// spanOf is what a permission covers.
func spanOf(p *authpb.Permission) span {
	switch {
	case len(p.RangeEnd) == 0:
		return span{p.Key, after(p.Key)}
	case isOpen(p.RangeEnd):
		return span{p.Key, nil}
	}
	return span{p.Key, p.RangeEnd}
}

// after is the key that follows key.
func after(key []byte) []byte { return append(slices.Clip(key), 0) }

// isOpen reports whether end is the API's way to say that a range has none.
func isOpen(end []byte) bool { return len(end) == 1 && end[0] == 0 }

// compare orders keys and ends: an empty one is above all others.
func compare(a, b []byte) int {
	switch {
	case len(a) == 0 && len(b) == 0:
		return 0
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	}
	return bytes.Compare(a, b)
}

// ranges is a set of keys.
type ranges struct {
	all    []span // as the permissions give them, in the order of roles and permissions
	merged []span // the same keys: in order, none touching the next

	shape sync.Once
	root  *node // of all, for backward spans
}

// merge makes merged from all.
func (r *ranges) merge() {
	sorted := slices.Clone(r.all)
	slices.SortFunc(sorted, func(a, b span) int { return compare(a.begin, b.begin) })
	for _, s := range sorted {
		if compare(s.begin, s.end) >= 0 {
			continue // a role from before such permissions were refused
		}
		if n := len(r.merged); n > 0 && compare(s.begin, r.merged[n-1].end) <= 0 {
			if compare(s.end, r.merged[n-1].end) > 0 {
				r.merged[n-1].end = s.end
			}
			continue
		}
		r.merged = append(r.merged, s)
	}
}

// cover reports whether the key, or all keys from key up to end, are in the set.
func (r *ranges) cover(key, end []byte) bool {
	switch {
	case len(end) == 0:
		i := r.last(key)
		return i >= 0 && compare(key, r.merged[i].end) < 0
	case isOpen(end):
		end = nil
	case compare(key, end) > 0:
		return r.coverBackward(span{key, end})
	}
	i := r.last(key)
	return i >= 0 && compare(key, r.merged[i].end) < 0 && compare(end, r.merged[i].end) <= 0
}

// last is the index of the last merged span that begins at key or before; -1 if none does.
func (r *ranges) last(key []byte) int {
	return sort.Search(len(r.merged), func(i int) bool { return compare(r.merged[i].begin, key) > 0 }) - 1
}

// ---- backward spans ----
//
// A client may ask for the keys from "d" below "a". There are none, and so nothing to
// permit or to deny; but a Txn that asks for them is applied or refused as a whole, and
// the members must agree. etcd asks an interval tree, whose search goes astray where a
// span ends before it begins: what it finds depends on how the tree has grown. So for
// such spans the same tree is grown here: a red-black tree by (begin, end) with the
// textbook's insertion, filled in the order of roles and permissions.

type node struct {
	span
	max                 []byte // the highest end below and here
	left, right, parent *node
	red                 bool
}

// coverBackward is etcd's answer for a span that ends before it begins.
func (r *ranges) coverBackward(q span) bool {
	r.shape.Do(func() {
		for _, s := range r.all {
			r.insert(&node{span: s, red: true})
		}
		r.root.setMax()
	})
	var first, reach []byte
	found, whole := false, true
	r.root.visit(q, func(s span) bool {
		if !found {
			found, first, reach = true, s.begin, s.end
			return true
		}
		if compare(reach, s.begin) < 0 {
			whole = false
			return false
		}
		if compare(s.end, reach) > 0 {
			reach = s.end
		}
		return true
	})
	return found && whole && compare(reach, q.end) >= 0 && compare(first, q.begin) <= 0
}

// side tells where s lies of o: -1 left, 1 right, 0 if they seem to overlap.
func (s span) side(o span) int {
	switch {
	case compare(s.begin, o.begin) < 0 && compare(s.end, o.begin) <= 0:
		return -1
	case compare(s.begin, o.end) >= 0:
		return 1
	}
	return 0
}

// visit shows the spans that seem to overlap q to fn, until it returns false.
func (n *node) visit(q span, fn func(span) bool) bool {
	if n == nil {
		return true
	}
	switch side := q.side(n.span); {
	case side < 0:
		return n.left.visit(q, fn)
	case side == 0:
		return n.left.visit(q, fn) && fn(n.span) && n.right.visit(q, fn)
	case span{n.begin, n.max}.side(q) == 0:
		return n.left.visit(q, fn) && n.right.visit(q, fn)
	}
	return true
}

// setMax fills in max, which the insertion does not need.
func (n *node) setMax() {
	if n == nil {
		return
	}
	n.max = n.end
	for _, c := range []*node{n.left, n.right} {
		c.setMax()
		if c != nil && compare(c.max, n.max) > 0 {
			n.max = c.max
		}
	}
}

// insert adds n, which is red. Of equal spans the later goes to the right.
func (r *ranges) insert(n *node) {
	at := &r.root
	for *at != nil {
		n.parent = *at
		at = (*at).childFor(n.span)
	}
	*at = n
	for n.parent != nil && n.parent.red {
		up := n.parent.parent // there is one: the root is black
		left := n.parent == up.left
		uncle := up.right
		if !left {
			uncle = up.left
		}
		if uncle != nil && uncle.red {
			n.parent.red, uncle.red, up.red = false, false, true
			n = up
			continue
		}
		if inner := left == (n == n.parent.right); inner {
			n = n.parent
			r.rotate(n, left)
		}
		n.parent.red, up.red = false, true
		r.rotate(up, !left)
	}
	r.root.red = false
}

func (n *node) childFor(s span) **node {
	if c := compare(s.begin, n.begin); c < 0 || c == 0 && compare(s.end, n.end) < 0 {
		return &n.left
	}
	return &n.right
}

// rotate moves n down to the left, or to the right, and its other child into its place.
func (r *ranges) rotate(n *node, left bool) {
	var up *node
	if left {
		up = n.right
		n.right = up.left
		if up.left != nil {
			up.left.parent = n
		}
		up.left = n
	} else {
		up = n.left
		n.left = up.right
		if up.right != nil {
			up.right.parent = n
		}
		up.right = n
	}
	up.parent = n.parent
	switch {
	case n.parent == nil:
		r.root = up
	case n.parent.left == n:
		n.parent.left = up
	default:
		n.parent.right = up
	}
	n.parent = up
}
