package mvcc

import "slices"

// radixMin is from how many elements on sortByHead counts instead of comparing: below, the
// counters cost more.
const radixMin = 1 << 10

// sortByHead sorts list by head, a number of each element, and by compare those whose
// heads are equal. It does not call compare for others, so a head that tells most elements
// apart makes this several times faster than a sort that compares. It may use memory for
// as many elements again. The result is list or that memory.
func sortByHead[T any](list []T, head func(*T) uint64, compare func(a, b T) int) []T {
	if len(list) < radixMin {
		slices.SortFunc(list, func(a, b T) int {
			if x, y := head(&a), head(&b); x != y {
				if x < y {
					return -1
				}
				return 1
			}
			return compare(a, b)
		})
		return list
	}
	list = sortByBytes(list, head)
	for i := 0; i < len(list); {
		j, h := i+1, head(&list[i])
		for j < len(list) && head(&list[j]) == h {
			j++
		}
		if j > i+1 {
			slices.SortFunc(list[i:j], compare)
		}
		i = j
	}
	return list
}

// sortByBytes sorts list by head, one byte of it after the other, the lowest first. Bytes
// that all heads have in common cost nothing.
func sortByBytes[T any](list []T, head func(*T) uint64) []T {
	var counts [8][256]int
	for i := range list {
		h := head(&list[i])
		for b := range counts {
			counts[b][byte(h>>(8*b))]++
		}
	}
	var to []T
	for b := range counts {
		count := &counts[b]
		if first := byte(head(&list[0]) >> (8 * b)); count[first] == len(list) {
			continue
		}
		at := 0
		for v, n := range count {
			count[v] = at
			at += n
		}
		if to == nil {
			to = make([]T, len(list))
		}
		for i := range list {
			v := byte(head(&list[i]) >> (8 * b))
			to[count[v]] = list[i]
			count[v]++
		}
		list, to = to, list
	}
	return list
}
