package containers

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails if a goroutine of this package outlives its service.
func TestMain(m *testing.M) {
	code := m.Run()
	var left []string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if left = goroutines(); len(left) == 0 {
			os.Exit(code)
		}
	}
	fmt.Printf("FAIL: %d goroutines are left, among them:\n%s\n", len(left), left[0])
	os.Exit(1)
}

// goroutines are the stacks that this package is part of, but for the caller's.
func goroutines() (out []string) {
	buf := make([]byte, 1<<20)
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "services/containers.") && !strings.Contains(g, "TestMain") {
			out = append(out, g)
		}
	}
	return out
}
