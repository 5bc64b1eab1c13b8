package placement

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/hashicorp/go-version"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Rules are where a sandbox may run, checked, as they are kept and compared: canonical JSON of an api.Placement. Empty: anywhere.
type Rules string

// Limits of rules.
const (
	maxRules     = 16 // of a kind
	maxRuleValue = 256
	maxDevices   = 8
	maxOfDevice  = 128
)

var (
	attributeForm = regexp.MustCompile(`^(node\.(id|name|datacenter|region|class)|(kernel|label|attr)\.[A-Za-z0-9_][A-Za-z0-9_.-]{0,99})$`)
	deviceForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}(/[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}){0,2}$`)
	ofDeviceForm  = regexp.MustCompile(`^(model|vendor|type|ids|attr\.[A-Za-z0-9_][A-Za-z0-9_.-]{0,99})$`)
	operators     = []string{"=", "!=", "<", "<=", ">", ">=", "regexp", "version", "semver", "set_contains", "set_contains_any", "is_set", "is_not_set"}
)

// ParseRules checks what a client says. An error is an *api.Error that names the field.
func ParseRules(p *api.Placement) (Rules, error) {
	if p == nil {
		return "", nil
	}
	c := *p
	c.Constraints, c.Affinities = slices.Clone(p.Constraints), slices.Clone(p.Affinities)
	if len(c.Constraints) > maxRules || len(c.Affinities) > maxRules {
		return "", invalid("placement: %d constraints and %d affinities, at most %d of each are allowed", len(c.Constraints), len(c.Affinities), maxRules)
	}
	for i := range c.Constraints {
		if err := checkRule(&c.Constraints[i]); err != nil {
			return "", invalid("placement.constraints[%d].%s", i, err)
		}
	}
	for i := range c.Affinities {
		if err := checkRule(&c.Affinities[i].PlacementRule); err != nil {
			return "", invalid("placement.affinities[%d].%s", i, err)
		}
		if w := c.Affinities[i].Weight; w == 0 || w < -100 || w > 100 {
			return "", invalid("placement.affinities[%d].weight is %d: -100 to 100 are allowed, without 0", i, w)
		}
	}
	var err error
	if c.Devices, err = checkDevices(p.Devices); err != nil {
		return "", err
	}
	switch c.Strategy {
	case "", api.PlaceBinPack, api.PlaceSpread:
	default:
		return "", invalid("placement.strategy is %.40q: %s and %s are known", c.Strategy, api.PlaceBinPack, api.PlaceSpread)
	}
	if c.Priority < 0 || c.Priority > 100 {
		return "", invalid("placement.priority is %d, 1 to 100 are allowed", c.Priority)
	}
	b, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("placement: %w", err)
	}
	if string(b) == "{}" {
		return "", nil
	}
	return Rules(b), nil
}

// checkDevices checks what is asked for of devices, and fills in counts and operators.
func checkDevices(want []api.DeviceRequest) ([]api.DeviceRequest, error) {
	if len(want) > maxDevices {
		return nil, invalid("placement: %d devices, at most %d are allowed", len(want), maxDevices)
	}
	list := slices.Clone(want)
	for i := range list {
		d := &list[i]
		if !deviceForm.MatchString(d.Name) {
			return nil, invalid("placement.devices[%d].name is %.60q: type, vendor/type and vendor/type/model are known", i, d.Name)
		}
		if slices.ContainsFunc(list[:i], func(o api.DeviceRequest) bool { return o.Name == d.Name }) {
			return nil, invalid("placement.devices[%d].name is %q, as that of another: count says how many", i, d.Name)
		}
		d.Count = cmp.Or(d.Count, 1)
		if d.Count < 0 || d.Count > maxOfDevice {
			return nil, invalid("placement.devices[%d].count is %d, 1 to %d are allowed", i, d.Count, maxOfDevice)
		}
		if len(d.Constraints) > maxRules {
			return nil, invalid("placement.devices[%d]: %d constraints, at most %d are allowed", i, len(d.Constraints), maxRules)
		}
		d.Constraints = slices.Clone(d.Constraints)
		for j := range d.Constraints {
			r := &d.Constraints[j]
			if !ofDeviceForm.MatchString(r.Attribute) {
				return nil, invalid("placement.devices[%d].constraints[%d].attribute is %.60q: model, vendor, type, ids and attr.<name> are known", i, j, r.Attribute)
			}
			if err := checkCondition(r); err != nil {
				return nil, invalid("placement.devices[%d].constraints[%d].%s", i, j, err)
			}
		}
	}
	return list, nil
}

func invalid(format string, args ...any) error {
	return api.Errorf(http.StatusBadRequest, api.CodeInvalid, format, args...)
}

// checkRule checks a rule and fills in its operator. What a client says becomes part of a scheduler's job, so nothing in it may be
// interpreted there: attributes are of a list, and values have no "${".
func checkRule(r *api.PlacementRule) error {
	if !attributeForm.MatchString(r.Attribute) {
		return fmt.Errorf("attribute is %.60q: node.id, .name, .datacenter, .region, .class, kernel.<probe>, label.<name> and attr.<name> are known", r.Attribute)
	}
	return checkCondition(r)
}

// checkCondition checks a rule but for its attribute.
func checkCondition(r *api.PlacementRule) error {
	if r.Operator == "" {
		r.Operator = "="
	}
	if !slices.Contains(operators, r.Operator) {
		return fmt.Errorf("operator is %.40q: %s are known", r.Operator, strings.Join(operators, " "))
	}
	if strings.HasPrefix(r.Operator, "is_") != (r.Value == "") {
		return fmt.Errorf("value is %.40q, which does not go with operator %s", r.Value, r.Operator)
	}
	if len(r.Value) > maxRuleValue || strings.Contains(r.Value, "${") || strings.ContainsFunc(r.Value, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return fmt.Errorf("value is not up to %d printable bytes without %q", maxRuleValue, "${")
	}
	if r.Operator == "regexp" {
		if _, err := regexp.Compile(r.Value); err != nil {
			return fmt.Errorf("value is no regular expression: %.100s", err.Error())
		}
	}
	if r.Operator == "version" || r.Operator == "semver" {
		if _, err := version.NewConstraint(r.Value); err != nil {
			return fmt.Errorf("value is no condition on a version, such as %q", ">= 6.1, < 7")
		}
	}
	return nil
}

// And returns rules that hold where both do. Where both want something that there is once, as a strategy, it is what more wants.
func (r Rules) And(more Rules) (Rules, error) {
	if r == "" || r == more {
		return more, nil
	}
	if more == "" {
		return r, nil
	}
	a, b := r.Placement(), more.Placement()
	for _, c := range b.Constraints {
		if !slices.Contains(a.Constraints, c) {
			a.Constraints = append(a.Constraints, c)
		}
	}
	for _, c := range b.Affinities {
		if !slices.Contains(a.Affinities, c) {
			a.Affinities = append(a.Affinities, c)
		}
	}
	for _, d := range b.Devices {
		if i := slices.IndexFunc(a.Devices, func(o api.DeviceRequest) bool { return o.Name == d.Name }); i >= 0 {
			a.Devices[i] = d
		} else {
			a.Devices = append(a.Devices, d)
		}
	}
	a.Strategy, a.Priority = cmp.Or(b.Strategy, a.Strategy), cmp.Or(b.Priority, a.Priority)
	out, err := json.Marshal(a)
	if err != nil {
		return "", fmt.Errorf("placement: %w", err)
	}
	return Rules(out), nil
}

// Placement returns the rules as they were said.
func (r Rules) Placement() api.Placement {
	var p api.Placement
	if r != "" {
		_ = json.Unmarshal([]byte(r), &p) // it was marshalled by ParseRules
	}
	return p
}

// Allows says, in words, which of the constraints does not hold of a node with these attributes; empty: all do.
func (r Rules) Allows(attributes map[string]string) (why string) {
	for _, c := range r.Placement().Constraints {
		have, is := attributes[c.Attribute]
		if !holds(c, have, is) {
			return strings.TrimSpace(fmt.Sprintf("%s is %q, which is not %s %s", c.Attribute, have, c.Operator, c.Value))
		}
	}
	return ""
}

func holds(c api.PlacementRule, have string, is bool) bool {
	switch c.Operator {
	case "is_set":
		return is
	case "is_not_set":
		return !is
	case "!=":
		return have != c.Value // as the scheduler has it: also where there is none
	}
	if !is {
		return false
	}
	switch c.Operator {
	case "=":
		return have == c.Value
	case "regexp":
		m, err := regexp.MatchString(c.Value, have)
		return err == nil && m
	case "set_contains", "set_contains_any":
		return contains(strings.Split(have, ","), strings.Split(c.Value, ","), c.Operator == "set_contains")
	case "version", "semver":
		return versionHolds(have, c.Value, c.Operator == "semver")
	}
	order := strings.Compare(have, c.Value)
	if a, err := strconv.ParseFloat(have, 64); err == nil {
		if b, err := strconv.ParseFloat(c.Value, 64); err == nil {
			order = compare(a, b)
		}
	}
	switch c.Operator {
	case "<":
		return order < 0
	case "<=":
		return order <= 0
	case ">":
		return order > 0
	default:
		return order >= 0
	}
}

func compare(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func contains(have, want []string, all bool) bool {
	for _, w := range want {
		found := slices.ContainsFunc(have, func(h string) bool { return strings.TrimSpace(h) == strings.TrimSpace(w) })
		if found != all {
			return found
		}
	}
	return all
}

// versionHolds reports whether a version is within constraints such as ">= 6.1, < 7", as schedulers read them.
// Of semver what stands behind a hyphen, as in "6.18.5-cloud", is no reason against it.
func versionHolds(have, want string, semver bool) bool {
	v, err := version.NewVersion(have)
	if err != nil {
		return false
	}
	if semver {
		v = v.Core()
	}
	c, err := version.NewConstraint(want)
	return err == nil && c.Check(v)
}
