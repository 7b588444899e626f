//! Clusters that are switched on: who is a member, and which models are to be where.

use pomona_common::{
    ClusterId, KeyPrint, MachineRole, ModelName, ModelRecord, NodeId, TokenId, TokenVerifier,
};
use pomona_decide::{Admits, Command, ModelPolicy, TokenRecord};

/// The wall clock when the simulation begins, in seconds since 1970.
pub const BEGAN_S: u64 = 1_000_000;

pub fn node_id(node: usize) -> NodeId {
    NodeId::from_bits(node as u128 + 1)
}

/// What the log says when a cluster of nodes with these roles, which all store these models, is switched on.
pub fn founding(roles: &[MachineRole], models: &[ModelRecord]) -> Vec<Command> {
    let mut commands = vec![Command::Found(ClusterId::from_bits(1))];
    for (node, role) in roles.iter().enumerate() {
        let token = TokenId::from_bits(node as u128);
        commands.push(Command::OpenToken {
            id: token,
            token: TokenRecord {
                verifier: TokenVerifier([0; 32]),
                admits: Admits::Node(*role),
                name: format!("n{node}"),
                expires_s: BEGAN_S + 100,
                used_by: None,
            },
            lease: None,
            now_s: BEGAN_S,
        });
        commands.push(Command::ConsumeToken {
            token,
            node: node_id(node),
            name: String::new(),
            key: KeyPrint([node as u8; 32]),
            approved: true,
            now_s: BEGAN_S,
        });
    }
    commands.extend(models.iter().cloned().map(Command::AddModel));
    commands
}

/// Says how many replicas a model has, and where.
pub fn place(model: ModelName, policy: ModelPolicy) -> Command {
    Command::SetPolicy { model, policy }
}
