package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/internal/sentence"
)

// controllers are what limits need.
var controllers = []string{"cpu", "memory", "pids", "devices", "freezer"}

// warnings says what this host lacks, and what that costs.
func warnings() []string {
	var out []string
	if h, err := cgroup.Detect(); err != nil {
		out = append(out, sentence.Of(err))
	} else if h.Mode != cgroup.V2 {
		for _, c := range controllers {
			if !mounted(h, c) {
				out = append(out, fmt.Sprintf("the cgroup controller %s is not mounted: what it limits cannot be limited", c))
			}
		}
	} else if raw, err := os.ReadFile(h.V2 + "/cgroup.controllers"); err == nil {
		for _, c := range []string{"cpu", "memory", "pids"} {
			if !strings.Contains(" "+strings.TrimSpace(string(raw))+" ", " "+c+" ") {
				out = append(out, fmt.Sprintf("the cgroup controller %s is not there: what it limits cannot be limited", c))
			}
		}
	}
	if lack, err := lacking(); err != nil {
		out = append(out, err.Error())
	} else if len(lack) > 0 {
		out = append(out, fmt.Sprintf("this daemon lacks %s: privileged containers, and those to which it is added, go without", strings.Join(lack, ", ")))
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && files.Max < 100_000 {
		out = append(out, fmt.Sprintf("at most %d files may be open: some hundreds of containers reach that; raise LimitNOFILE", files.Max))
	}
	return out
}

func mounted(h cgroup.Hierarchies, controller string) bool {
	for _, v1 := range h.V1 {
		if v1.Has(controller) {
			return true
		}
	}
	return false
}
