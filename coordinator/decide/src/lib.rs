//! Pure decisions of the coordinator: apply, planner, router
