package seccomp

import (
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What a filter can see: struct seccomp_data (seccomp(2)), little-endian on every machine gantry runs on.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

const (
	load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	and   = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	jump  = unix.BPF_JMP | unix.BPF_JA
	ifEq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	ifGt  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	ifGe  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	leave = unix.BPF_RET | unix.BPF_K
)

// The kernel allows jumps forward only, of at most 255 instructions where they depend on a comparison.
const far = 255

type code = []unix.SockFilter

// assemble writes the program: which table, then the tree of that table.
func assemble(list []abi, set *ruleset) (code, error) {
	p := kill()
	for _, a := range slices.Backward(list) {
		if a == x32 {
			continue // with x86-64
		}
		t := tree(set.spans(a), a)
		if a == x8664 {
			t = branch(ifGe, x32Bit, set.above(list), t)
		}
		p = branch(ifEq, audit[a], append(code{{Code: load, K: dataNumber}}, t...), p)
	}
	p = append(code{{Code: load, K: dataArch}}, p...)
	if len(p) > maxInstructions {
		return nil, invalid("%d instructions, and the kernel takes %d: use fewer rules", len(p), maxInstructions)
	}
	return p, nil
}

func kill() code { return code{{Code: leave, K: unix.SECCOMP_RET_KILL_PROCESS}} }

// above is for the numbers of x86-64 that are x32's. Without x32 the number -1 is left to the default:
// with it a tracer says that it has made the call itself.
func (set *ruleset) above(list []abi) code {
	if slices.Contains(list, x32) {
		return tree(set.spans(x32), x32)
	}
	return branch(ifEq, math.MaxUint32, code{{Code: leave, K: set.otherwise}}, kill())
}

// branch runs yes where the comparison holds, else no. Both end by themselves.
func branch(op uint16, k uint32, yes, no code) code {
	var p code
	if len(no) <= far {
		p = code{{Code: op, K: k, Jt: uint8(len(no))}}
	} else {
		p = code{{Code: op, K: k, Jf: 1}, {Code: jump, K: uint32(len(no))}}
	}
	return append(append(p, no...), yes...)
}

// tree finds the number in A among spans.
func tree(spans []span, a abi) code {
	if len(spans) == 1 {
		return leaf(spans[0], a)
	}
	if p := grove(spans, a); len(p) <= far {
		return p
	}
	mid := len(spans) / 2
	return branch(ifGe, spans[mid].first, tree(spans[mid:], a), tree(spans[:mid], a))
}

// grove is a tree whose comparisons stand together, and behind them every answer once. It is right only
// as long as no jump is too far.
func grove(spans []span, a abi) code {
	var p code
	type edge struct {
		from int
		yes  bool
		to   uint32 // an answer
	}
	var edges []edge
	var grow func(spans []span) (at int, answer uint32, plain bool)
	grow = func(spans []span) (int, uint32, bool) {
		at := len(p)
		if len(spans) == 1 {
			if len(spans[0].rules) == 0 {
				return 0, spans[0].ret, true
			}
			p = append(p, leaf(spans[0], a)...)
			return at, 0, false
		}
		mid := len(spans) / 2
		p = append(p, unix.SockFilter{Code: ifGe, K: spans[mid].first})
		if to, answer, plain := grow(spans[:mid]); plain {
			edges = append(edges, edge{at, false, answer})
		} else {
			p[at].Jf = uint8(to - at - 1)
		}
		if to, answer, plain := grow(spans[mid:]); plain {
			edges = append(edges, edge{at, true, answer})
		} else {
			p[at].Jt = uint8(to - at - 1)
		}
		return at, 0, false
	}
	grow(spans)
	answers := map[uint32]int{}
	for _, e := range edges {
		to, ok := answers[e.to]
		if !ok {
			to = len(p)
			answers[e.to] = to
			p = append(p, unix.SockFilter{Code: leave, K: e.to})
		}
		if e.yes {
			p[e.from].Jt = uint8(to - e.from - 1)
		} else {
			p[e.from].Jf = uint8(to - e.from - 1)
		}
	}
	return p
}

func leaf(s span, a abi) code {
	var p code
	for _, r := range s.rules {
		p = append(p, r.code(a)...)
	}
	return append(p, unix.SockFilter{Code: leave, K: s.ret})
}

// Where a comparison goes before the distances are known. Code of a rule is shorter than fail.
const (
	pass = 254
	fail = 253
)

// code leaves with r's answer if its conditions hold, else falls through its end.
func (r rule) code(a abi) code {
	var p code
	for _, c := range r.conds {
		begin := len(p)
		p = append(p, c.code(a)...)
		resolve(p, begin, pass, len(p))
	}
	p = append(p, unix.SockFilter{Code: leave, K: r.ret})
	resolve(p, 0, fail, len(p))
	return p
}

func resolve(p code, from int, mark uint8, to int) {
	for i := from; i < len(p); i++ {
		if p[i].Code&7 != unix.BPF_JMP {
			continue
		}
		if p[i].Jt == mark {
			p[i].Jt = uint8(to - i - 1)
		}
		if p[i].Jf == mark {
			p[i].Jf = uint8(to - i - 1)
		}
	}
}

// code compares one argument: the high halves first, the low ones where those are equal.
func (c cond) code(a abi) code {
	lo, hi := uint32(dataArgs+8*c.arg), uint32(dataArgs+8*c.arg+4)
	vlo, vhi := uint32(c.value), uint32(c.value>>32)
	if c.op == specs.OpMaskedEqual {
		p := code{{Code: load, K: lo}, {Code: and, K: uint32(c.mask)}, {Code: ifEq, K: vlo, Jf: fail}}
		if a.narrow() {
			return p
		}
		return append(code{{Code: load, K: hi}, {Code: and, K: uint32(c.mask >> 32)}, {Code: ifEq, K: vhi, Jf: fail}}, p...)
	}
	var high, low code
	switch c.op {
	case specs.OpEqualTo:
		high = code{{Code: ifEq, K: vhi, Jf: fail}}
		low = code{{Code: ifEq, K: vlo, Jf: fail}}
	case specs.OpNotEqual:
		high = code{{Code: ifEq, K: vhi, Jf: pass}}
		low = code{{Code: ifEq, K: vlo, Jt: fail}}
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		high = code{{Code: ifGt, K: vhi, Jt: pass}, {Code: ifEq, K: vhi, Jf: fail}}
		low = code{{Code: ifGt, K: vlo, Jf: fail}}
		if c.op == specs.OpGreaterEqual {
			low[0].Code = ifGe
		}
	case specs.OpLessThan, specs.OpLessEqual:
		high = code{{Code: ifGt, K: vhi, Jt: fail}, {Code: ifEq, K: vhi, Jf: pass}}
		low = code{{Code: ifGe, K: vlo, Jt: fail}}
		if c.op == specs.OpLessEqual {
			low[0].Code = ifGt
		}
	default: // OpMaskedEqual, above
	}
	low = append(code{{Code: load, K: lo}}, low...)
	if a.narrow() {
		return low
	}
	return append(append(code{{Code: load, K: hi}}, high...), low...)
}
