package sim

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// register is one key: its state is its value, "" if there is none.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		have, in, out := state.(string), input.(*op), output.(*op)
		sure := out != nil // else nobody has heard the answer
		switch in.kind {
		case get:
			return have == out.found, have
		case put:
			return !sure || out.found == have, in.value
		case del:
			return !sure || out.found == have, ""
		}
		if have != in.expect {
			return !sure || !out.did && out.found == have, have
		}
		return !sure || out.did, in.value
	},
	DescribeOperation: func(input, _ any) string { return input.(*op).String() },
}

// linearMax bounds the search for an order of one key's history.
const linearMax = 10 * time.Second

// linear checks that each key's history is linearizable. Of a request without an answer
// the log says whether it took place; if so, before its entry was first seen applied.
func (c *checker) linear() {
	keys := map[string][]porcupine.Operation{}
	for _, o := range c.ops {
		switch o.kind {
		case get, put, swap, del:
		default:
			continue
		}
		p := porcupine.Operation{ClientId: o.client, Input: o, Call: o.call, Output: o, Return: o.ret}
		if o.err != nil {
			if c.applications[o.tag()] == 0 {
				continue
			}
			p.Output, p.Return = (*op)(nil), c.appliedAt[o.tag()]
			if p.Return < p.Call {
				p.Return = math.MaxInt64
			}
		}
		keys[o.key] = append(keys[o.key], p)
	}
	for key, history := range keys {
		result := porcupine.CheckOperationsTimeout(register, history, linearMax)
		if result == porcupine.Ok {
			continue
		}
		var b strings.Builder
		for _, p := range history {
			fmt.Fprintf(&b, "\n  [%d, %d] %v", p.Call, p.Return, p.Input)
		}
		c.violation(fmt.Sprintf("the history of %s is not linearizable (%s):%s", key, result, b.String()))
	}
}
