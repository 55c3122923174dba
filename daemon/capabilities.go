package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/gantryd/gantry/internal/ocispec"
)

// capabilities are the daemon's own: no container can have more.
func capabilities() ([]string, error) {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	have := ^uint64(0)
	for l := range strings.Lines(string(raw)) {
		if name, value, _ := strings.Cut(l, ":"); name == "CapPrm" || name == "CapBnd" {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				return nil, fmt.Errorf("read capabilities: %w", err)
			}
			have &= mask
		}
	}
	return ocispec.CapabilityNames(have), nil
}

// lacking are the capabilities that this kernel knows and the daemon does not have.
func lacking() ([]string, error) {
	have, err := capabilities()
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return nil, fmt.Errorf("read number of capabilities: %w", err)
	}
	last, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 6)
	if err != nil {
		return nil, fmt.Errorf("read number of capabilities: %w", err)
	}
	return slices.DeleteFunc(ocispec.CapabilityNames(1<<(last+1)-1), func(c string) bool { return slices.Contains(have, c) }), nil
}
