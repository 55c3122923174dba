package native

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// trait has a child give itself something that its program keeps: how it is scheduled, where its memory
// lies. It does so while it still has every capability.
type trait func(*program)

// processTraits are those of config.json's process.
func processTraits(s *specs.Process) ([]trait, error) {
	var out []trait
	if s.Scheduler != nil {
		t, err := scheduler(s.Scheduler)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	if s.IOPriority != nil {
		t, err := ioPriority(s.IOPriority)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// linuxTraits are those of its linux section, which every process of the container has.
func linuxTraits(l *specs.Linux) ([]trait, error) {
	var out []trait
	if l.Personality != nil {
		t, err := personality(l.Personality)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	if l.MemoryPolicy != nil {
		t, err := memoryPolicy(l.MemoryPolicy)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// word is a word of config.json and what the kernel calls it. Lists of them are in the executable, where
// a map would be made at each start.
type word[W comparable, V any] struct {
	word  W
	value V
}

func meaning[W comparable, V any](list []word[W, V], w W) (V, bool) {
	for _, x := range list {
		if x.word == w {
			return x.value, true
		}
	}
	var none V
	return none, false
}

var schedulers = []word[specs.LinuxSchedulerPolicy, uint32]{
	{specs.SchedOther, unix.SCHED_NORMAL},
	{specs.SchedFIFO, unix.SCHED_FIFO},
	{specs.SchedRR, unix.SCHED_RR},
	{specs.SchedBatch, unix.SCHED_BATCH},
	{specs.SchedIdle, unix.SCHED_IDLE},
	{specs.SchedDeadline, unix.SCHED_DEADLINE},
}

var schedulerFlags = []word[specs.LinuxSchedulerFlag, uint64]{
	{specs.SchedFlagResetOnFork, unix.SCHED_FLAG_RESET_ON_FORK},
	{specs.SchedFlagReclaim, unix.SCHED_FLAG_RECLAIM},
	{specs.SchedFlagDLOverrun, unix.SCHED_FLAG_DL_OVERRUN},
	{specs.SchedFlagKeepPolicy, unix.SCHED_FLAG_KEEP_POLICY},
	{specs.SchedFlagKeepParams, unix.SCHED_FLAG_KEEP_PARAMS},
	{specs.SchedFlagUtilClampMin, unix.SCHED_FLAG_UTIL_CLAMP_MIN},
	{specs.SchedFlagUtilClampMax, unix.SCHED_FLAG_UTIL_CLAMP_MAX},
}

// scheduler is sched_setattr(2).
func scheduler(s *specs.Scheduler) (trait, error) {
	policy, ok := meaning(schedulers, s.Policy)
	if s.Policy == specs.SchedISO {
		return nil, fmt.Errorf("process.scheduler.policy %s: no kernel has it: %w", s.Policy, errdefs.ErrNotImplemented)
	}
	realtime := policy == unix.SCHED_FIFO || policy == unix.SCHED_RR
	switch {
	case !ok:
		return nil, invalid("process.scheduler.policy %q is unknown", s.Policy)
	case s.Nice < -20 || s.Nice > 19:
		return nil, invalid("process.scheduler.nice %d: it must be between -20 and 19", s.Nice)
	case s.Priority != 0 && !realtime:
		return nil, invalid("process.scheduler.priority: it is for SCHED_FIFO and SCHED_RR, not for %s", s.Policy)
	case policy != unix.SCHED_DEADLINE && (s.Runtime|s.Deadline|s.Period) != 0:
		return nil, invalid("process.scheduler.runtime, deadline and period are for SCHED_DEADLINE, not for %s", s.Policy)
	}
	attr := &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: policy, Nice: s.Nice, Priority: uint32(s.Priority),
		Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period,
	}
	for _, f := range s.Flags {
		bit, ok := meaning(schedulerFlags, f)
		if !ok {
			return nil, invalid("process.scheduler.flags: %q is unknown", f)
		}
		attr.Flags |= bit
	}
	return func(p *program) {
		p.say("set process.scheduler %s", s.Policy)
		p.add(unix.SYS_SCHED_SETATTR, 0, hold(p, attr), 0)
	}, nil
}

// ioClasses are those of ioprio_set(2).
var ioClasses = []specs.IOPriorityClass{1: specs.IOPRIO_CLASS_RT, specs.IOPRIO_CLASS_BE, specs.IOPRIO_CLASS_IDLE}

func ioPriority(s *specs.LinuxIOPriority) (trait, error) {
	class := slices.Index(ioClasses, s.Class)
	if class < 1 {
		return nil, invalid("process.ioPriority.class %q is unknown", s.Class)
	}
	if s.Priority < 0 || s.Priority > 7 {
		return nil, invalid("process.ioPriority.priority %d: it must be between 0 and 7", s.Priority)
	}
	return func(p *program) {
		p.say("set process.ioPriority %s %d", s.Class, s.Priority)
		const whoProcess, classShift = 1, 13 // IOPRIO_WHO_PROCESS, IOPRIO_CLASS_SHIFT (linux/ioprio.h)
		p.add(unix.SYS_IOPRIO_SET, whoProcess, 0, uintptr(class)<<classShift|uintptr(s.Priority))
	}, nil
}

// personality is personality(2). The specification knows no flags yet.
func personality(s *specs.LinuxPersonality) (trait, error) {
	domain := uintptr(0)
	switch s.Domain {
	case specs.PerLinux:
	case specs.PerLinux32:
		domain = 8 // linux/personality.h
	default:
		return nil, invalid("linux.personality.domain %q is unknown", s.Domain)
	}
	if len(s.Flags) > 0 {
		return nil, fmt.Errorf("linux.personality.flags: %s is not supported: %w", s.Flags[0], errdefs.ErrNotImplemented)
	}
	return func(p *program) {
		p.say("set linux.personality %s", s.Domain)
		p.add(unix.SYS_PERSONALITY, domain)
	}, nil
}

var memoryModes = []word[specs.MemoryPolicyModeType, uintptr]{
	{specs.MpolDefault, unix.MPOL_DEFAULT},
	{specs.MpolPreferred, unix.MPOL_PREFERRED},
	{specs.MpolBind, unix.MPOL_BIND},
	{specs.MpolInterleave, unix.MPOL_INTERLEAVE},
	{specs.MpolLocal, unix.MPOL_LOCAL},
	{specs.MpolPreferredMany, unix.MPOL_PREFERRED_MANY},
	{specs.MpolWeightedInterleave, unix.MPOL_WEIGHTED_INTERLEAVE},
}

var memoryFlags = []word[specs.MemoryPolicyFlagType, uintptr]{
	{specs.MpolFNumaBalancing, unix.MPOL_F_NUMA_BALANCING},
	{specs.MpolFRelativeNodes, unix.MPOL_F_RELATIVE_NODES},
	{specs.MpolFStaticNodes, unix.MPOL_F_STATIC_NODES},
}

// memoryPolicy is set_mempolicy(2).
func memoryPolicy(s *specs.LinuxMemoryPolicy) (trait, error) {
	mode, ok := meaning(memoryModes, s.Mode)
	if !ok {
		return nil, invalid("linux.memoryPolicy.mode %q is unknown", s.Mode)
	}
	for _, f := range s.Flags {
		bit, ok := meaning(memoryFlags, f)
		if !ok {
			return nil, invalid("linux.memoryPolicy.flags: %q is unknown", f)
		}
		mode |= bit
	}
	nodes := new(unix.CPUSet) // as good a set of 1024 bits as any
	if err := list(nodes, s.Nodes); err != nil {
		return nil, invalid("linux.memoryPolicy.nodes %q: %v", s.Nodes, err)
	}
	return func(p *program) {
		p.say("set linux.memoryPolicy %s %s", s.Mode, s.Nodes)
		if s.Nodes == "" {
			p.add(unix.SYS_SET_MEMPOLICY, mode, 0, 0)
			return
		}
		p.add(unix.SYS_SET_MEMPOLICY, mode, hold(p, nodes), 8*unsafe.Sizeof(*nodes)+1) // of which the kernel reads one bit less
	}, nil
}

// list reads "0-3,7" (cpuset(7), "List format").
func list(set *unix.CPUSet, s string) error {
	for _, part := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' }) {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, err := strconv.ParseUint(first, 10, 32)
		if err != nil {
			return errors.New("not a list of numbers and ranges")
		}
		to := from
		if isRange {
			if to, err = strconv.ParseUint(last, 10, 32); err != nil || to < from {
				return errors.New("not a list of numbers and ranges")
			}
		}
		if most := uint64(8 * unsafe.Sizeof(*set)); to >= most {
			return fmt.Errorf("%d is above %d", to, most-1)
		}
		for n := from; n <= to; n++ {
			set.Set(int(n))
		}
	}
	return nil
}

// affinity is where a process that is added to a container runs: until it is in the cgroup, and after.
type affinity struct{ initial, final *unix.CPUSet }

func readAffinity(s *specs.CPUAffinity) (affinity, error) {
	var a affinity
	if s == nil {
		return a, nil
	}
	for _, x := range []struct {
		name, list string
		to         **unix.CPUSet
	}{{"initial", s.Initial, &a.initial}, {"final", s.Final, &a.final}} {
		if x.list == "" {
			continue
		}
		*x.to = new(unix.CPUSet)
		if err := list(*x.to, x.list); err != nil {
			return a, invalid("process.execCPUAffinity.%s %q: %v", x.name, x.list, err)
		}
	}
	return a, nil
}

// before is what the thread that clones does; the child begins where it runs.
func (a affinity) before() func() error {
	if a.initial == nil {
		return nil
	}
	return func() error {
		if err := unix.SchedSetaffinity(0, a.initial); err != nil {
			return fmt.Errorf("set process.execCPUAffinity.initial: %w", err)
		}
		return nil
	}
}

// settle is what the child does once it is in its cgroup.
func (a affinity) settle(p *program) {
	if a.final != nil {
		p.say("set process.execCPUAffinity.final")
		p.now.class = errdefs.ErrInvalidArgument
		p.add(unix.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(*a.final), hold(p, a.final))
	}
}
