//! The planner: golden scenarios and properties. Pure, no engine needed.
