// Command gantry-shim runs one container.
package main

import (
	_ "github.com/gantryd/gantry/internal/bundle"
	_ "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

func main() {}
