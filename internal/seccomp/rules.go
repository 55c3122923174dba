package seccomp

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// rule is one line of a profile for one call.
type rule struct {
	conds []cond // all must hold; none: always
	ret   uint32 // SECCOMP_RET_…
	order int    // place in the profile
}

// cond compares an argument of a call.
type cond struct {
	arg         uint
	op          specs.LinuxSeccompOperator
	value, mask uint64 // mask for OpMaskedEqual only
}

// ruleset is a profile by name of call, still without numbers.
type ruleset struct {
	byName    map[string][]rule
	otherwise uint32
	enosys    bool // calls newer than every one that the profile names answer ENOSYS
	notify    bool
}

// action is a return value of a filter. value goes with ERRNO, which the caller gets, and with TRACE,
// which the tracer gets; EPERM if the profile does not say. The specification wants it refused elsewhere.
func action(a specs.LinuxSeccompAction, value *uint) (uint32, error) {
	switch a {
	case specs.ActErrno:
		return with(unix.SECCOMP_RET_ERRNO, a, value, 4095) // MAX_ERRNO, linux/err.h
	case specs.ActTrace:
		return with(unix.SECCOMP_RET_TRACE, a, value, unix.SECCOMP_RET_DATA)
	case specs.ActKill, specs.ActKillThread:
		return with(unix.SECCOMP_RET_KILL_THREAD, a, value, 0)
	case specs.ActKillProcess:
		return with(unix.SECCOMP_RET_KILL_PROCESS, a, value, 0)
	case specs.ActTrap:
		return with(unix.SECCOMP_RET_TRAP, a, value, 0)
	case specs.ActAllow:
		return with(unix.SECCOMP_RET_ALLOW, a, value, 0)
	case specs.ActLog:
		return with(unix.SECCOMP_RET_LOG, a, value, 0)
	case specs.ActNotify:
		return with(unix.SECCOMP_RET_USER_NOTIF, a, value, 0)
	}
	return 0, fmt.Errorf("action %q is unknown", a)
}

// with puts value, at most limit, into the lower half of ret. Limit 0: the action takes none.
func with(ret uint32, a specs.LinuxSeccompAction, value *uint, limit uint) (uint32, error) {
	switch {
	case value == nil && limit == 0:
		return ret, nil
	case value == nil:
		return ret | uint32(unix.EPERM), nil
	case limit == 0:
		return 0, fmt.Errorf("%s takes no errno (%d)", a, *value)
	case *value > limit:
		return 0, fmt.Errorf("errno %d of %s is above %d", *value, a, limit)
	}
	return ret | uint32(*value), nil
}

// permissive says that a call that gets ret may happen.
func permissive(ret uint32) bool {
	return ret == unix.SECCOMP_RET_ALLOW || ret == unix.SECCOMP_RET_LOG
}

func translate(p *specs.LinuxSeccomp) (*ruleset, error) {
	otherwise, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, invalid("default action: %w", err)
	}
	if otherwise == unix.SECCOMP_RET_USER_NOTIF {
		return nil, invalid("%s cannot be the default action: the listener would wait for itself", specs.ActNotify)
	}
	set := &ruleset{byName: map[string][]rule{}, otherwise: otherwise}
	// As runc: a program that tries what is new falls back where it is told that the kernel does not
	// have it; "not permitted" stops it.
	switch otherwise & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ERRNO:
		set.enosys = otherwise != unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)
	case unix.SECCOMP_RET_KILL_PROCESS, unix.SECCOMP_RET_KILL_THREAD, unix.SECCOMP_RET_TRAP:
		set.enosys = true
	}
	for i, s := range p.Syscalls {
		ret, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, invalid("rule %d (%s): %w", i+1, called(s.Names), err)
		}
		all, err := conditions(s.Args)
		if err != nil {
			return nil, invalid("rule %d (%s): %w", i+1, called(s.Names), err)
		}
		for _, name := range s.Names {
			if name == "" {
				return nil, invalid("rule %d names an empty call", i+1)
			}
			if ret == unix.SECCOMP_RET_USER_NOTIF {
				if name == "write" {
					return nil, invalid("%s cannot be the action for write: the listener could not be told", specs.ActNotify)
				}
				set.notify = true
			}
			if _, known := set.byName[name]; !known {
				set.byName[name] = nil // named, so not newer than the profile, even if the rule says nothing
			}
			if ret == otherwise {
				continue
			}
			for _, c := range all {
				set.byName[name] = append(set.byName[name], rule{conds: c, ret: ret, order: i})
			}
		}
	}
	return set, nil
}

// called is how people find a rule in their profile: by the calls that it names.
func called(names []string) string {
	const some = 3
	if len(names) > some {
		return strings.Join(names[:some], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

// conditions are the alternatives under which a rule applies. As in runc, a rule that names the same
// argument twice means "or", else "and".
func conditions(args []specs.LinuxSeccompArg) ([][]cond, error) {
	var all []cond
	twice := false
	for _, a := range args {
		if a.Index > 5 {
			return nil, fmt.Errorf("argument %d: a call has arguments 0 to 5", a.Index)
		}
		c := cond{arg: a.Index, op: a.Op, value: a.Value}
		switch a.Op {
		case specs.OpMaskedEqual:
			c.mask, c.value = a.Value, a.ValueTwo
		case specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual:
		default:
			return nil, fmt.Errorf("operator %q is unknown", a.Op)
		}
		twice = twice || slices.ContainsFunc(all, func(o cond) bool { return o.arg == c.arg })
		all = append(all, c)
	}
	if !twice {
		return [][]cond{all}, nil
	}
	var out [][]cond
	for _, c := range all {
		out = append(out, []cond{c})
	}
	return out, nil
}

// span is a range of calls, up to the next one's first, that have one answer.
type span struct {
	first uint32
	rules []rule // with conditions, tried in order
	ret   uint32 // if none applies
}

// spans are all numbers of a table, in order, from its first on.
func (set *ruleset) spans(a abi) []span {
	at := map[uint32]*span{}
	last, any := uint32(0), false // the newest call that the profile names, if it names any of this table
	add := func(nr uint32, rules []rule) {
		if !a.private(nr) {
			last, any = max(last, nr), true
		}
		if at[nr] == nil {
			at[nr] = &span{first: nr, ret: set.otherwise}
		}
		at[nr].rules = append(at[nr].rules, rules...)
	}
	for name, rules := range set.byName {
		if nr, ok := number(a, name); ok {
			add(nr, rules)
		}
		if through, sub, ok := multiplexed(a, name); ok {
			nr, _ := number(a, through)
			add(nr, inside(rules, sub))
		}
	}
	edges := []uint32{a.base(), last + 1}
	if a == arm {
		edges = append(edges, armPrivate)
	}
	for nr, s := range at {
		s.settle()
		edges = append(edges, nr, nr+1)
	}
	slices.Sort(edges)
	var out []span
	for _, nr := range slices.Compact(edges) {
		s := span{first: nr, ret: set.otherwise}
		if known := at[nr]; known != nil {
			s = *known
		} else if set.enosys && any && nr > last && !a.private(nr) {
			s.ret = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		}
		if n := len(out); n > 0 && len(s.rules)+len(out[n-1].rules) == 0 && out[n-1].ret == s.ret {
			continue // the range goes on
		}
		out = append(out, s)
	}
	return out
}

// inside is the rules of a call as they apply where it hides behind a number in the first argument of
// another. Its own arguments are in memory there: what is allowed for some of them only is not allowed,
// what is refused for some is refused for all.
func inside(rules []rule, nr uint64) []rule {
	var out []rule
	for _, r := range rules {
		if len(r.conds) > 0 && permissive(r.ret) {
			continue
		}
		r.conds = []cond{{arg: 0, op: specs.OpEqualTo, value: nr}}
		out = append(out, r)
	}
	return out
}

// settle puts rules in the profile's order, and lets the first without conditions win over all with some.
func (s *span) settle() {
	slices.SortStableFunc(s.rules, func(a, b rule) int { return a.order - b.order })
	for _, r := range s.rules {
		if len(r.conds) == 0 {
			s.rules, s.ret = nil, r.ret
			return
		}
	}
}
