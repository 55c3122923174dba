// Command ctl talks to gantryd.
package main

import _ "github.com/gantryd/gantry/proto/gantry/containers/v1"

func main() {}
